//! `cargo xtask vm-test`: every kernel program and the real-traffic tests in other kernels than this machine's.

mod event;
mod found;
mod guest;
mod initramfs;
mod journal;
mod kernel;
mod limits;
mod machine;
mod table;
mod torture;

use std::{
    env, fs, mem,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use vm_test::poll;

pub use self::guest::{GuestArgs, run as run_guest};
use self::{
    event::{Event, Plan, Test},
    found::Found,
    journal::Journal,
    kernel::Kernel,
    limits::{BUDGETS, QUICK},
    machine::Machine,
};
use crate::{
    build, paths,
    setup::{self, Scope, guests},
    shell::Steps,
    test::{self, NET_PACKAGE},
};

/// Boots other kernels under emulation, and runs in each what `test net` runs in this one.
///
/// In each kernel every program is loaded by the daemon's own loader, its verified instructions are held against a budget,
/// features are probed, and the real-traffic tests run, with small transfers and much patience. A full run writes what it
/// found into vm-test/README.md. Consoles of the guests stay in target/vm.
#[derive(clap::Args, Default)]
pub struct Args {
    /// A chosen part of the tests in the oldest kernel, programs only in the others: at most 12 minutes on two cores. Only
    /// compares the table.
    #[arg(long)]
    quick: bool,
    /// Boot only these: 6.1, 6.12, or the image of any x86 kernel (its modules in lib/modules/RELEASE beside it or above).
    #[arg(long, value_name = "IMAGE")]
    kernel: Vec<PathBuf>,
    /// Run only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run only these test binaries: the files and folders of vm-test/tests.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["quick", "torture"])]
    binary: Vec<String>,
    /// Leave out test binaries that were green in earlier runs: in the same kernel, the daemon and the test of the same bytes.
    #[arg(long, conflicts_with_all = ["quick", "torture", "filter"])]
    resume: bool,
    /// Compare the table in vm-test/README.md with what is found instead of writing it.
    #[arg(long)]
    check: bool,
    /// Write the table after a quick run too, with the chosen tests in every kernel: what it says of tests is what ran.
    #[arg(long, conflicts_with_all = ["binary", "check", "filter"])]
    write: bool,
    /// Run only the torture suite for short-circuits, in every kernel, and compare (or, with --write, record) its results.
    #[arg(long, conflicts_with_all = ["quick", "filter"])]
    torture: bool,
    /// Test the binary without optimisation.
    #[arg(long)]
    debug: bool,
}

/// The test binary of the torture suite.
const TORTURE: &str = "torture";
/// Bytes a transfer of a guest's tests: one byte takes about 30 times longer than in this kernel.
const BYTES: u64 = 4 << 20;
/// How much slower than a real machine a guest may be that has the machine to itself: measured 10 to 15 times, on two cores with
/// other work.
const PATIENCE: u32 = 20;
/// Guests that are begun where the emulator ends them ([`Machine::failed_by_emulator`]).
const ATTEMPTS: u32 = 3;
/// Longest run of one guest that has the machine to itself.
const BOUND: Duration = Duration::from_secs(90 * 60);

// === impl Args ===

impl Args {
    /// What continuous integration runs.
    pub fn quick() -> Self {
        Self {
            quick: true,
            ..Self::default()
        }
    }

    /// Whether somebody chose what runs: that says nothing of the rest.
    fn is_part(&self) -> bool {
        self.filter.is_some() || !self.binary.is_empty()
    }
}

pub fn run(args: &Args) -> Result<()> {
    vm_test::interrupt::on_signals()?;
    if args.write && !args.torture && !args.kernel.is_empty() {
        bail!("--write: the table is of all kernels; leave --kernel out, or write what --torture finds");
    }
    let mut steps = Steps::default();
    let tools = steps.step("tools and kernels", || setup::ensure(Scope::Guests))?;
    let kernels = kernels(args)?;
    steps.step("kernel programs", || build::kernel_programs(&tools))?;
    let tests = steps.step("compile tests", || {
        // All of them where the rest of CI needs them as well.
        let package = args.torture.then_some(NET_PACKAGE);
        let binaries = test::compile(package)?.into_iter();
        let net = binaries.filter(|binary| binary.package == NET_PACKAGE && binary.integration);
        let tests = net.map(|binary| Test {
            target: binary.target,
            executable: binary.executable,
            folder: binary.folder,
        });
        Ok(tests.collect::<Vec<_>>())
    })?;
    let profile = if args.debug { "debug" } else { "release" };
    steps.step(&format!("weft, {profile}"), || build::binary(args.debug))?;
    let weft = paths::target().join(profile).join("weft");

    if let Some(unknown) = args
        .binary
        .iter()
        .find(|name| !tests.iter().any(|test| test.target == **name))
    {
        let known: Vec<&str> = tests.iter().map(|test| test.target.as_str()).collect();
        bail!(
            "--binary: there is no {unknown:?}; expected one of {}",
            known.join(", ")
        );
    }

    let plans: Vec<Plan> = (0..kernels.len())
        .map(|number| Plan {
            weft: weft.clone(),
            tests: tests_of(args, number == 0, &tests),
            filter: args.filter.clone(),
            environment: vec![
                ("WEFT_TEST_BYTES".to_owned(), BYTES.to_string()),
                (poll::SCALE.to_owned(), (PATIENCE * at_once(kernels.len())).to_string()),
            ],
        })
        .collect();
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    let what = format!("Linux {}: programs and real traffic", names.join(" and "));
    let mut all = steps.step(&what, || boot_all(&kernels, &plans, args.resume))?;
    let mut wrong = Vec::new();
    for found in &mut all {
        found.binaries = tests.len();
        let problems = found.problems(BUDGETS).into_iter();
        wrong.extend(problems.map(|line| format!("Linux {}: {line}", found.kernel)));
    }
    if let Some(filter) = &args.filter
        && wrong.is_empty()
        && all.iter().all(|found| found.tests.is_empty())
    {
        bail!("no test has {filter:?} in its name");
    }
    let tortured = all.iter().any(|found| !found.cells.is_empty());
    if tortured && !args.is_part() {
        // Before anything else may be wrong: what is red is recorded as well.
        steps.step("torture", || {
            if args.write || !(args.torture || args.check) {
                torture::write(&all)
            } else {
                // Nor does this hide what else is wrong.
                wrong.extend(torture::compare(&all).err().map(|error| format!("{error:#}")));
                Ok(())
            }
        })?;
    }
    if !wrong.is_empty() {
        bail!(
            "{} things are wrong (`--resume` leaves out what is green):\n  {}",
            wrong.len(),
            wrong.join("\n  ")
        );
    }
    let whole = !args.is_part() && args.kernel.is_empty() && !args.torture;
    if whole {
        steps.step("table", || {
            if (args.quick || args.check) && !args.write {
                table::compare(&all)
            } else {
                table::write(&all)
            }
        })?;
    }
    steps.summary("vm-test");
    Ok(())
}

/// The oldest first.
fn kernels(args: &Args) -> Result<Vec<Kernel>> {
    let busybox = guests::busybox();
    let debian = |kernel: &guests::DebianKernel| Kernel::of_tree(kernel.name, &guests::tree(kernel), &busybox);
    if args.kernel.is_empty() {
        return guests::KERNELS.iter().map(debian).collect();
    }
    let named = |image: &PathBuf| {
        let known = guests::KERNELS.iter().find(|kernel| image == Path::new(kernel.name));
        known.map_or_else(|| Kernel::of_image(None, image, &busybox), debian)
    };
    args.kernel.iter().map(named).collect()
}

fn tests_of(args: &Args, oldest: bool, tests: &[Test]) -> Vec<Test> {
    let chosen = |test: &&Test| {
        if args.torture {
            return test.target == TORTURE;
        }
        if !args.binary.is_empty() {
            return args.binary.contains(&test.target);
        }
        !args.quick || ((oldest || args.write) && QUICK.contains(&test.target.as_str()))
    };
    tests.iter().filter(chosen).cloned().collect()
}

/// Guests share the processors.
fn at_once(guests: usize) -> u32 {
    u32::try_from(guests).unwrap_or(u32::MAX)
}

/// Runs each plan in its kernel, all at once: tests wait about half of the time, and one guest leaves a processor idle meanwhile.
///
/// # Errors
/// As [`boot`]. One kernel's trouble does not hide the other's findings, which are told as they come.
fn boot_all(kernels: &[Kernel], plans: &[Plan], resume: bool) -> Result<Vec<Found>> {
    let bound = BOUND * at_once(kernels.len());
    thread::scope(|scope| {
        let guests: Vec<_> = kernels
            .iter()
            .zip(plans)
            .map(|(kernel, plan)| scope.spawn(move || boot(kernel, plan.clone(), resume, bound)))
            .collect();
        // All of them end before the first error is told.
        let ended: Vec<_> = guests.into_iter().map(thread::ScopedJoinHandle::join).collect();
        let found = ended
            .into_iter()
            .map(|ended| ended.unwrap_or_else(|_| bail!("a guest's thread panicked")));
        found.collect()
    })
}

/// Runs `plan` in `kernel`, for at most `bound`; with `resume` only what is left of it.
///
/// # Errors
/// The guest does not come up, hangs, or ends too early; its console's tail is on the terminal by then.
fn boot(kernel: &Kernel, mut plan: Plan, resume: bool, bound: Duration) -> Result<Found> {
    let dir = paths::vm().join(&kernel.name);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let mut journal = Journal::open(dir.join("green.json"), &kernel.image, &plan.weft)?;
    let before = if resume { journal.resume(&mut plan)? } else { Vec::new() };
    let (plan_file, initrd) = (dir.join("plan.json"), dir.join("initramfs"));
    let console = paths::vm().join(format!("{}.log", kernel.name));
    let json = serde_json::to_vec_pretty(&plan).context("encode the plan")?;
    fs::write(&plan_file, json).with_context(|| format!("write {}", plan_file.display()))?;
    let xtask = env::current_exe().context("find this program")?;
    let visible = [paths::root(), paths::target()];
    let words = [xtask.as_path(), Path::new("__vm-guest"), &plan_file];
    initramfs::write(kernel, &guests::busybox(), &visible, &words, &initrd)?;

    let mut attempt = 1;
    loop {
        let mut machine = Machine::boot(kernel, &initrd, &console, bound)?;
        let mut found = Found::new(&kernel.name);
        before.iter().cloned().for_each(|event| found.take(event));
        let Err(error) = listen(&mut machine, &plan, &mut journal, &mut found) else {
            machine.power_off();
            return Ok(found);
        };
        eprintln!(
            "   console of the guest {} ({}), its end:\n{}",
            kernel.name,
            console.display(),
            machine.console_tail()
        );
        poll::check_interrupt()?;
        if attempt == ATTEMPTS || !machine.failed_by_emulator() {
            return Err(error);
        }
        eprintln!(
            "   Linux {}: {error:#}: the emulator's doing; attempt {attempt} of {ATTEMPTS}, another guest from the beginning",
            kernel.name
        );
        attempt += 1;
    }
}

/// Takes what the guest says into `found` until it is done, and keeps what is green.
///
/// # Errors
/// It gives up, hangs or ends too early.
fn listen(machine: &mut Machine, plan: &Plan, journal: &mut Journal, found: &mut Found) -> Result<()> {
    let mut of_binary = Vec::new();
    loop {
        let event = machine.event()?;
        match &event {
            Event::Done => return Ok(()),
            Event::Broken { why } => bail!("the guest gave up: {why}"),
            Event::Binary { .. } => of_binary.clear(),
            _ => {}
        }
        if !matches!(event, Event::Words { .. }) {
            of_binary.push(event.clone());
        }
        found.take(event);
        if plan.filter.is_none()
            && let (Some(Event::Binary { target }), Some(Event::BinaryEnded { code: 0, .. })) =
                (of_binary.first(), of_binary.last())
            && let Some(test) = plan.tests.iter().find(|test| test.target == *target)
        {
            journal.keep(test, mem::take(&mut of_binary))?;
        }
    }
}
