package main

import "github.com/spf13/cobra"

func (a *app) run() *cobra.Command    { return &cobra.Command{Use: "run"} }
func (a *app) report() *cobra.Command { return &cobra.Command{Use: "report"} }
