//! `cargo xtask demo`: what weft does, shown by real programs, every line checked while it runs.

mod acts;
mod adapters;
mod death;
mod mesh;
mod screen;

use anyhow::{Context, Result, bail};
use vm_test::{Lab, leak, poll};

use self::{mesh::Servers, screen::Screen};
use crate::{
    build, preflight,
    setup::{self, Scope},
};

/// Meshes real servers (nginx) and clients (curl, wrk) on this machine and shows what weft does with them.
///
/// Every line is checked by a real request while it runs; exit code 0 only if all held. Runs in a network namespace and a
/// cgroup of its own and removes everything, also after Ctrl-C. Needs root.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Leave the mesh running and say how to play with it and how to remove it.
    #[arg(long)]
    keep: bool,
}

pub fn run(args: &Args) -> Result<()> {
    preflight::kernel("demo")?;
    let tools = setup::ensure(Scope::Traffic)?;
    build::release(&tools)?;
    build::own_filters(&setup::filters::ensure()?)?;
    vm_test::interrupt::on_signals()?;

    let before = leak::Snapshot::take().context("list what is on this machine before")?;
    let mut screen = Screen::new();
    let lab = Lab::new("demo")?;
    screen.say(&format!(
        "A network namespace, a cgroup and a folder of the demo's own: {}.\nCommands run in there; `--state-dir {}` is \
         left out below.",
        lab.netns().name(),
        lab.state().display()
    ));
    match show(&lab, &mut screen) {
        Ok(servers) if args.keep => {
            keep(lab, servers, &screen)?;
            return verdict(&screen);
        }
        Ok(servers) => drop(servers),
        Err(error) => {
            if poll::check_interrupt().is_ok() {
                lab.print_log();
            }
            drop(lab);
            leak::nothing_since(&before).context("the demo ended early, and cleaning up did not remove everything")?;
            return Err(error.context("the demo ended early; everything of it was removed"));
        }
    }
    if screen.failed() > 0 {
        lab.print_log();
    }
    drop(lab);
    screen.act("Nothing is left behind");
    screen.check(
        "kernel programs, maps, cgroups, namespaces, mounts",
        "before = after",
        || leak::nothing_since(&before).map(|()| "all gone".to_owned()),
    )?;
    verdict(&screen)
}

/// The servers are nginx with small pages: the short-circuit may be shown whatever the self-test says of this kernel.
pub const FLAGS: &[&str] = &["--short-circuit", "force"];

/// All acts. A line that does not hold is shown and counted, and the show goes on; an error ends it.
fn show(lab: &Lab, screen: &mut Screen) -> Result<Servers> {
    lab.daemon_with(FLAGS)?;
    let servers = mesh::start(lab)?;
    acts::capture(lab, screen)?;
    acts::deny_in_the_kernel(lab, screen)?;
    acts::judge_requests(lab, screen)?;
    acts::split(lab, screen)?;
    acts::edit_under_a_running_connection(lab, screen)?;
    adapters::hot_load(lab, screen)?;
    // Before wrk fills the flows that are kept.
    acts::what_was_seen(lab, screen)?;
    acts::short_circuit(lab, screen)?;
    death::kill_9(lab, screen)?;
    Ok(servers)
}

fn verdict(screen: &Screen) -> Result<()> {
    screen.total();
    if screen.failed() > 0 {
        bail!("{} of {} lines did not hold", screen.failed(), screen.shown());
    }
    Ok(())
}

fn keep(lab: Lab, servers: Servers, screen: &Screen) -> Result<()> {
    let inside = format!(
        "nsenter --net={} {}",
        lab.netns().path().display(),
        lab.weft_binary().display()
    );
    let state = lab.state().display().to_string();
    let resources = lab.resources().display().to_string();
    servers.keep();
    let remove = lab.keep()?;
    screen.say(&format!(
        "It goes on running. To play with it:\n\
         \x20 {inside} run --state-dir {state} --service friend -- curl -s http://web/\n\
         \x20 {inside} flows --state-dir {state} --follow\n\
         \x20 {inside} status --state-dir {state}\n\
         \x20 $EDITOR {resources}/*.yaml        # applied when saved\n\
         To remove it:\n\
         \x20 sh {}",
        remove.display()
    ));
    Ok(())
}
