package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/test/node"
)

func newDemoCommand() *cobra.Command {
	var d demo
	var stop bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show Weir at work on a small shop in network namespaces",
		Long: `demo makes a node out of network namespaces, with the pods of a small shop on
it, puts a Weir on that node, sends real requests, and shows what became of each
and which policy decided. The rest of the machine is not touched, and nothing is
left behind. It needs root, nginx, dnsmasq and nft.

It ends with status 1 if anything came out differently from what the policies
say (they are in examples/shop of the source).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.screen = newScreen(cmd.OutOrStdout())
			if stop {
				return d.stop()
			}
			// The first interrupt ends the demo in order, a second one at once.
			ctx, cancel := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer cancel()
			context.AfterFunc(ctx, cancel) // gives the signals back
			defer cancelOnBrokenPipe(cancel)()
			return d.run(ctx)
		},
	}
	cmd.Flags().BoolVar(&d.keep, "keep", false, "leave everything running to play with")
	cmd.Flags().BoolVar(&stop, "stop", false, "remove what --keep left running")
	cmd.Flags().StringVar(&d.name, "name", "weir-demo", "begins the names of all it makes: another name is another demo")
	return cmd
}

// cancelOnBrokenPipe calls cancel when nobody reads what is printed any more
// (`weir demo | head`), where the program would else die and leave everything
// standing. What it returns ends the watch.
func cancelOnBrokenPipe(cancel func()) (stop func()) {
	broken := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(broken, syscall.SIGPIPE)
	go func() {
		select {
		case <-broken:
			cancel()
		case <-done:
		}
	}()
	return func() { signal.Stop(broken); close(done) }
}

// demo is one run.
type demo struct {
	keep bool
	name string

	screen  *screen
	dir     string // objects, nginx's files, the agent's log
	network *node.Network
	node    *node.Node
	weir    *node.Weir
	places  map[string]*demoPlace
	records *demoRecords
	results []demoResult
	log     *os.File
}

// demoDir is where a demo keeps its files.
func demoDir(name string) string { return filepath.Join("/run", name) }

// stop removes a demo that was left running, or that was killed.
func (d *demo) stop() error {
	if os.Geteuid() != 0 {
		return errors.New("stopping the demo needs root")
	}
	if err := node.RemoveNetwork(d.name); err != nil {
		return err
	}
	if err := os.RemoveAll(demoDir(d.name)); err != nil {
		return fmt.Errorf("remove the demo's files: %w", err)
	}
	d.screen.say("The demo is gone.")
	return nil
}

// ready tells what is missing before anything is made.
func (d *demo) ready() error {
	if os.Geteuid() != 0 {
		return errors.New("the demo needs root: it makes network namespaces and loads eBPF programs (sudo weir demo)")
	}
	if strings.ContainsAny(d.name, "./ ") || d.name == "" {
		return fmt.Errorf("name of the demo: %q has a dot, slash or blank, or is empty", d.name)
	}
	var missing []string
	for program, pkg := range map[string]string{"nginx": "nginx-light", "nft": "nftables", "dnsmasq": "dnsmasq-base"} {
		if _, err := node.Program(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the demo needs %s: apt-get install %s", strings.Join(missing, " and "), strings.Join(missing, " "))
	}
	there, err := filepath.Glob("/run/netns/" + d.name + ".*")
	if err == nil && len(there) > 0 {
		return fmt.Errorf("a demo named %s is running, or was killed: weir demo --stop removes it", d.name)
	}
	return nil
}

func (d *demo) run(ctx context.Context) (err error) {
	if err := d.ready(); err != nil {
		return err
	}
	began := time.Now()
	kept := false
	defer func() {
		if kept {
			return
		}
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		if gone := d.clean(); gone != nil {
			err = errors.Join(err, gone)
		}
	}()
	d.screen.title("Weir on a small shop",
		"One node made of network namespaces, real web servers, real requests, the real kernel.")
	for _, step := range []struct {
		doing string
		do    func(context.Context) error
	}{
		{"a node, its pods and the world around it", d.build},
		{"a web server in each pod", d.serve},
		{"the cluster's DNS", d.serveDNS},
		{"weir agent over the directory of objects", d.startWeir},
	} {
		if err := d.screen.step(step.doing, func() error { return step.do(ctx) }); err != nil {
			return err
		}
	}
	d.showShop()
	for _, act := range []func(context.Context) error{d.actRequests, d.actNames, d.actChange, d.actKill} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	wrong := d.table()
	d.screen.say(fmt.Sprintf("%d of %d as the policies say, in %.1f s.", len(d.results)-wrong, len(d.results), time.Since(began).Seconds()))
	if d.keep {
		kept = true
		d.howToPlay()
	}
	if wrong > 0 {
		return exitCode(1)
	}
	return nil
}

// clean removes everything.
func (d *demo) clean() error {
	if d.records != nil {
		_ = d.records.stop()
	}
	var errs []error
	if d.network != nil {
		errs = append(errs, d.screen.step("removing it all", d.network.Close))
	}
	if d.log != nil {
		d.log.Close()
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

// startWeir starts the agent and waits until it enforces.
func (d *demo) startWeir(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if d.log, err = os.Create(filepath.Join(d.dir, "agent.log")); err != nil {
		return fmt.Errorf("make the agent's log: %w", err)
	}
	d.weir = d.node.NewWeir(self, node.Objects{Dir: filepath.Join(d.dir, "objects")}, d.log)
	return d.startAgent(ctx)
}

func (d *demo) startAgent(ctx context.Context) error {
	if err := d.weir.Start(); err != nil {
		return err
	}
	err := d.weir.Wait(ctx)
	if err == nil {
		d.records = &demoRecords{}
		d.records.stop, err = d.weir.Flows(ctx, d.records.add)
	}
	if err != nil && ctx.Err() == nil {
		if text, read := os.ReadFile(d.log.Name()); read == nil {
			err = fmt.Errorf("%w\nthe agent printed:\n%s", err, tail(string(text), 20))
		}
	}
	return err
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// howToPlay tells what to do with a demo that is kept.
func (d *demo) howToPlay() {
	ns := d.name + ".pod-shop-frontend"
	api := d.places["api"].addrs
	d.screen.heading("It keeps running")
	for _, line := range []string{
		"ask        ip netns exec " + ns + " curl -i http://" + api[0].String() + ":8080/products",
		"           ip netns exec " + ns + " curl -i http://[" + api[1].String() + "]:8080/orders",
		"           (pods: " + d.name + ".pod-NAMESPACE-NAME, node: " + d.node.Host.Name + ", world: " + d.network.Outside.Name + ")",
		"watch      weir flows -f --state " + d.node.State,
		"change     " + filepath.Join(d.dir, "objects") + "/*.yaml: what you save is enforced at once",
		"status     weir status --state " + d.node.State,
		"agent      its log is " + d.log.Name(),
		"stop       weir demo --stop" + map[bool]string{false: " --name " + d.name}[d.name == "weir-demo"],
	} {
		d.screen.say("  " + line)
	}
	if d.records != nil {
		_ = d.records.stop()
	}
}

// copyFiles copies the YAML of a file system into a directory.
func copyFiles(from fs.FS, to string) error {
	return fs.WalkDir(from, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := fs.ReadFile(from, path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, filepath.Base(path)), text, 0o644)
	})
}

// decided is the record among those of one request that says what became of
// it: the proxy's word, else a drop, else the last verdict.
func decided(records []flow.Record) (flow.Record, bool) {
	var best flow.Record
	rank := -1
	for _, r := range records {
		score := 0
		switch {
		case r.Layer == "L7":
			score = 3
		case r.Verdict == flow.Dropped:
			score = 2
		case r.Rule != nil:
			score = 1
		}
		if score >= rank {
			best, rank = r, score
		}
	}
	return best, rank >= 0
}
