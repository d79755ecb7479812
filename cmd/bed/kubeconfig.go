package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	gossh "golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// apiServer is where Kubernetes' API server listens on the control node.
const apiServer = "127.0.0.1:6443"

// kubeconfigTimeout is for one command in the control plane's container; an emulated node takes some seconds.
const kubeconfigTimeout = 2 * time.Minute

func (a *app) kubeconfig() *cobra.Command {
	var file string
	var port int
	c := &cobra.Command{
		Use: "kubeconfig [-- COMMAND...]", Short: "Reach the bed's Kubernetes from this host",
		Long: "Writes a kubeconfig and carries connections to the bed's API server through ssh, with the server's certificate checked as\n" +
			"ever. With a command it does so while that runs, with KUBECONFIG set: bed kubeconfig -- kubectl get nodes. Without one it does\n" +
			"so until it is interrupted, and prints where the kubeconfig is.",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			if _, err := os.Lstat(file); err == nil {
				return taken(file)
			}
			w, s, err := a.standing(ctx)
			if err != nil {
				return err
			}
			if kind := s.Inventory.Kubernetes; kind != bed.OwnKubernetes {
				return bed.Problems{{Key: "kubernetes", Value: cmp.Or(kind, "none"), Host: true, Reason: "is what was asked for: bed " + s.Inventory.Bed + " has no Kubernetes of its own to reach", Remedy: "make it with: bed up -s " + w.Stack + " -c kubernetes=usernetes"}}
			}
			signer, err := gossh.ParsePrivateKey(s.PrivateKey)
			if err != nil {
				return fmt.Errorf("the bed's user key: %w", err)
			}
			control := s.Inventory.Control()
			client, err := remote.Dial(ctx, remote.Node(s.Inventory, control, signer))
			if err != nil {
				return err
			}
			defer client.Close()
			asking, cancel := context.WithTimeoutCause(ctx, kubeconfigTimeout, fmt.Errorf("it took longer than %s", kubeconfigTimeout))
			defer cancel()
			admin, err := client.Run(asking, "usernetes kubeconfig")
			if err != nil {
				return fmt.Errorf("reading the kubeconfig on node %s: %w; see `bed ssh %s -s %s -- docker ps -a`", control.Name, err, control.Name, w.Stack)
			}
			beside := filepath.Dir(w.KeyFile())
			if err := removeDead(ctx, beside); err != nil {
				return err
			}
			listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return fmt.Errorf("listening for kubectl: %w; choose another with --port", err)
			}
			defer listener.Close()
			config, err := kubeconfigFor(admin.Stdout, listener.Addr().String())
			if err != nil {
				return fmt.Errorf("the kubeconfig of node %s: %w", control.Name, err)
			}
			if file == "" { // others may have one
				file = filepath.Join(beside, fmt.Sprint(kubeconfigFile, listener.Addr().(*net.TCPAddr).Port))
				_ = os.Remove(file) // of a tunnel that had the port before
			}
			if err := writePrivately(file, config); err != nil {
				return err
			}
			defer os.Remove(file) // it leads nowhere when this ends
			ended := make(chan error, 1)
			go func() { ended <- client.Forward(listener, apiServer) }()
			if len(args) > 0 {
				a.close()
				return withKubeconfig(ctx, file, args)
			}
			progress.Note(ctx, "the API server of bed %s is at https://%s until this is interrupted", s.Inventory.Bed, listener.Addr())
			if err := a.print(map[string]string{"kubeconfig": file, "server": "https://" + listener.Addr().String()}, func() { fmt.Println(file) }); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case err := <-ended:
				return fmt.Errorf("the tunnel to Kubernetes: %w; see `bed status -s %s`", err, w.Stack)
			}
		},
	}
	c.Flags().StringVar(&file, "file", "", "where to write it (default: beside the bed's key)")
	c.Flags().IntVar(&port, "port", 0, "local port to listen at (default: a free one)")
	a.stackFlag(c)
	return c
}

// kubeconfigFor is the administrator's kubeconfig with another address of the server, which its certificate has too.
func kubeconfigFor(admin []byte, address string) ([]byte, error) {
	var config map[string]any
	if err := yaml.Unmarshal(admin, &config); err != nil {
		return nil, err
	}
	clusters, _ := config["clusters"].([]any)
	if len(clusters) != 1 {
		return nil, fmt.Errorf("it has %d clusters where one was expected", len(clusters))
	}
	entry, _ := clusters[0].(map[string]any)
	cluster, _ := entry["cluster"].(map[string]any)
	if cluster["certificate-authority-data"] == nil {
		return nil, errors.New("it has no authority to check the server's certificate by")
	}
	cluster["server"] = "https://" + address
	return yaml.Marshal(config)
}

// kubeconfigFile and the port of its tunnel are what a kubeconfig beside the bed's key is called.
const kubeconfigFile = "kubeconfig-"

// removeDead removes the kubeconfigs of tunnels that are no more, whose commands were killed.
func removeDead(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, kubeconfigFile+"*"))
	for _, file := range files {
		c, errDial := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", "127.0.0.1:"+strings.TrimPrefix(filepath.Base(file), kubeconfigFile))
		if errDial == nil {
			_ = c.Close()
		} else if errors.Is(errDial, syscall.ECONNREFUSED) {
			err = errors.Join(err, os.Remove(file))
		}
	}
	return err
}

func taken(file string) error {
	return bed.Problems{{Reason: "--file " + file + ": it is there already, and would be gone when the tunnel ends", Remedy: "name a file that does not exist, or none"}}
}

// writePrivately writes a file that nobody else may read. One that is there already is somebody's, and stays.
func writePrivately(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return taken(path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func withKubeconfig(ctx context.Context, file string, args []string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "KUBECONFIG="+file)
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("`%s` ended with status %d", strings.Join(args, " "), exit.ExitCode())
	}
	return err
}
