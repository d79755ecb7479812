// Command cmd runs the fake oVirt engine until it is interrupted. It prints what to export for `bed up -s ovirt`.
//
//	go run ./provision/ovirt/enginetest/cmd --backed-by nspawn --image TREE
//
// Backed by nspawn, its virtual machines are containers of the nspawn driver, booted from the tree that is given, whatever is uploaded: real
// nodes, so that all of a bed runs without an engine. Backed by loopback, they are sshds that show their host key and let nobody in.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address and port")
	backedBy := flag.String("backed-by", "loopback", "what stands in for virtual machines: loopback or nspawn")
	image := flag.String("image", "", "tree that nspawn's nodes boot from, as `bed image build debian-12` prints it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var backing enginetest.Backing
	switch *backedBy {
	case "loopback":
		backing = &enginetest.Loopback{Port: 22}
	case "nspawn":
		if *image == "" {
			return errors.New("--backed-by nspawn needs --image, a tree")
		}
		d, err := drivers.Open("nspawn", drivers.Settings{})
		if err != nil {
			return err
		}
		backing = enginetest.NewNodes(d, *image)
	default:
		return fmt.Errorf("--backed-by %s is not known; there is loopback, nspawn", *backedBy)
	}
	e, err := enginetest.Start(*listen, enginetest.Usual(), backing)
	if err != nil {
		return err
	}
	defer e.Close()
	dir, err := os.MkdirTemp("", "fake-engine-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, e.CA, 0o644); err != nil {
		return err
	}
	fmt.Printf("export OVIRT_URL=%s OVIRT_USERNAME=%s OVIRT_PASSWORD=%s OVIRT_CAFILE=%s\n", e.URL, e.Username, e.Password, ca)
	<-ctx.Done()
	return nil
}
