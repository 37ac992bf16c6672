use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, value_parser};
use weft_adapters::{NativeEntry, builtin};
use weft_policy::ObjectRef;

use super::{
    Daemon,
    output::{Format, Table, print_json},
};
use crate::{
    admin::api::{AdapterChange, AdapterVerb, AdapterView, GenerationView, GenerationWeight, Share},
    error::{Code as _, INVALID},
    explain::DEFAULT_NAMESPACE,
};

/// Adapters: what looks at requests beside the mesh's own policy, and who is told
#[derive(Debug, Args)]
pub struct Adapter {
    #[command(flatten)]
    daemon: Daemon,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Which adapters are in force, in the order in which they look
    List(Shown),
    /// What they did
    Stats(Shown),
    /// Load a new generation of one that is WebAssembly, under traffic; what cannot run is refused and changes nothing
    Load {
        #[command(flatten)]
        named: Named,
        /// The module; the daemon keeps a copy
        file: PathBuf,
        /// What to call it, else vN
        #[arg(long)]
        generation: Option<String>,
        /// Percent of the requests that it gets; else all, and the one before it stays for a rollback
        #[arg(long, value_name = "PERCENT", value_parser = value_parser!(u8).range(0..=100), conflicts_with = "shadow")]
        weight: Option<u8>,
        /// It sees copies of all requests and changes nothing; what it would have done is counted
        #[arg(long)]
        shadow: bool,
    },
    /// Set weights of generations; one that was rolled back gets requests again
    Weight {
        #[command(flatten)]
        named: Named,
        #[arg(value_name = "GENERATION=WEIGHT", required = true, value_parser = weight)]
        weights: Vec<GenerationWeight>,
    },
    /// Take a generation out at once; the others get its requests
    Rollback {
        #[command(flatten)]
        named: Named,
        /// Which one, else the newest that gets requests
        #[arg(long)]
        generation: Option<String>,
    },
    /// Take one away that was stored with `weft apply`
    Remove {
        #[command(flatten)]
        named: Named,
    },
    /// Which adapters are compiled in, or the page of one of them: its parameters
    Explain { name: Option<String> },
}

#[derive(Debug, Args)]
struct Named {
    name: String,
    #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
    namespace: String,
}

#[derive(Debug, Args)]
struct Shown {
    /// Only those of this name
    name: Option<String>,
    /// Only those of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Adapter {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(shown) => shown.exec(&self.daemon, list)?,
            Verb::Stats(shown) => shown.exec(&self.daemon, stats)?,
            Verb::Load {
                named,
                file,
                generation,
                weight,
                shadow,
            } => {
                let module = file.canonicalize();
                let module = module.with_context(|| format!("read module {}", file.display()))?;
                let share = match (shadow, weight) {
                    (true, _) => Share::Shadow,
                    (false, Some(percent)) => Share::Percent(percent),
                    (false, None) => Share::All,
                };
                let verb = AdapterVerb::Load {
                    module,
                    generation,
                    share,
                };
                change(&self.daemon, named, verb, "loaded")?;
            }
            Verb::Weight { named, weights } => change(&self.daemon, named, AdapterVerb::Weigh { weights }, "weighed")?,
            Verb::Rollback { named, generation } => {
                change(&self.daemon, named, AdapterVerb::RollBack { generation }, "rolled back")?;
            }
            Verb::Remove { named } => {
                let object = ObjectRef {
                    kind: "Adapter".into(),
                    namespace: Some(named.namespace.into()),
                    name: named.name,
                };
                let outcome = self.daemon.ask(async |client| client.delete(&object).await)?;
                println!("{} removed", outcome.object);
            }
            Verb::Explain { name: None } => catalog()?,
            Verb::Explain { name: Some(name) } => {
                let Some(entry) = builtin::find(&name) else {
                    let names: Vec<&str> = builtin::ALL.iter().map(|entry| entry.name).collect();
                    let unknown = anyhow::anyhow!("no adapter `{name}` is compiled in; there are {}", names.join(", "));
                    return Err(unknown).code(INVALID);
                };
                page(entry)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Shown {
    fn exec(self, daemon: &Daemon, print: fn(&[AdapterView]) -> io::Result<()>) -> anyhow::Result<()> {
        let mut adapters = daemon.ask(async |client| client.adapters().await)?;
        adapters.retain(|adapter| {
            self.name.as_ref().is_none_or(|name| *name == adapter.name)
                && self
                    .namespace
                    .as_ref()
                    .is_none_or(|namespace| *namespace == adapter.namespace)
        });
        if let Some(name) = self.name.filter(|_| adapters.is_empty()) {
            bail!("no adapter {name} is in force");
        }
        match self.output {
            Format::Json => print_json(&adapters),
            Format::Text => print(&adapters).context("write"),
        }
    }
}

/// Changes an adapter and says how requests are shared from now on.
fn change(daemon: &Daemon, named: Named, verb: AdapterVerb, done: &str) -> anyhow::Result<()> {
    let change = AdapterChange {
        namespace: named.namespace,
        name: named.name,
        verb,
    };
    let changed = daemon.ask(async |client| client.change_adapter(&change).await)?;
    let shares: Vec<String> = changed
        .adapter
        .generations
        .iter()
        .map(|generation| format!("{} {}", generation.name, share_of(generation)))
        .collect();
    println!(
        "Adapter {}/{}: {} {done}; now {}",
        change.namespace,
        change.name,
        changed.generation,
        shares.join(", ")
    );
    Ok(())
}

/// Its weight, or why it has none.
fn share_of(generation: &GenerationView) -> String {
    match (&generation.rolled_back, generation.shadow) {
        (Some(_), _) => "out".to_owned(),
        (None, true) => "shadow".to_owned(),
        (None, false) => generation.weight.to_string(),
    }
}

/// `GENERATION=WEIGHT`.
fn weight(text: &str) -> Result<GenerationWeight, String> {
    let parsed = text.split_once('=').and_then(|(generation, weight)| {
        Some(GenerationWeight {
            generation: generation.to_owned(),
            weight: weight.parse().ok()?,
        })
    });
    parsed.ok_or_else(|| format!("`{text}` is no weight, expected GENERATION=NUMBER such as v2=10"))
}

fn list(adapters: &[AdapterView]) -> io::Result<()> {
    let mut table = Table::new(["NAMESPACE", "NAME", "ROLE", "BACKEND", "SERVICES", "STATE"]);
    for adapter in adapters {
        let state = match (&adapter.problem, adapter.earlier) {
            (None, _) => in_force(&adapter.generations),
            (Some(problem), true) => format!("an earlier version is in force: {problem}"),
            (Some(problem), false) => format!("NOT IN FORCE: {problem}"),
        };
        table.row([
            adapter.namespace.clone(),
            adapter.name.clone(),
            adapter.role.clone(),
            adapter.backend.clone(),
            adapter.services.to_string(),
            state,
        ]);
    }
    write(&table, "no adapters")
}

fn in_force(generations: &[GenerationView]) -> String {
    let mut state = "in force".to_owned();
    for generation in generations {
        if let Some(problem) = &generation.problem {
            state.push_str(&format!("; generation {} is NOT: {problem}", generation.name));
        }
        if let Some(why) = &generation.rolled_back {
            state.push_str(&format!("; generation {} ROLLED BACK: {why}", generation.name));
        }
    }
    state
}

fn stats(adapters: &[AdapterView]) -> io::Result<()> {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "ALLOWED",
        "DENIED",
        "FAILED",
        "MEAN",
        "SENT",
        "DROPPED",
    ]);
    for adapter in adapters {
        let judged = adapter.allowed + adapter.denied + adapter.failed;
        let mean = match judged {
            0 => "-".to_owned(),
            _ => format!("{:.1}us", adapter.took_us as f64 / judged as f64),
        };
        table.row([
            adapter.namespace.clone(),
            adapter.name.clone(),
            adapter.allowed.to_string(),
            adapter.denied.to_string(),
            adapter.failed.to_string(),
            mean,
            adapter.sent.to_string(),
            adapter.dropped.to_string(),
        ]);
    }
    write(&table, "no adapters")?;
    generations(adapters)
}

/// Those that are WebAssembly count by generation.
fn generations(adapters: &[AdapterView]) -> io::Result<()> {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "GENERATION",
        "WEIGHT",
        "STREAMS",
        "ANSWERED",
        "TRAPS",
        "FAILED",
        "CALLS",
        "DIFFERS",
        "MEAN",
        "WAITS",
        "HELD",
        "INSTANCES",
        "MEMORY",
        "MODULE",
    ]);
    for adapter in adapters {
        for generation in &adapter.generations {
            let mean = match generation.streams {
                0 => "-".to_owned(),
                streams => format!("{:.1}us", generation.took_us as f64 / streams as f64),
            };
            let waiting = generation.waiting.filter(|waiting| waiting.requests > 0);
            let waits = waiting.map(|waiting| format!("{:.1}us", waiting.waited_us as f64 / waiting.requests as f64));
            let held = generation.waiting.map(|waiting| waiting.held.to_string());
            let module = generation.module.as_deref().unwrap_or("-");
            table.row([
                adapter.namespace.clone(),
                adapter.name.clone(),
                generation.name.clone(),
                share_of(generation),
                generation.streams.to_string(),
                generation.answers.to_string(),
                generation.traps.to_string(),
                generation.failed.to_string(),
                generation.calls.to_string(),
                if generation.shadow {
                    generation.disagreed.to_string()
                } else {
                    "-".to_owned()
                },
                mean,
                waits.unwrap_or_else(|| "-".to_owned()),
                held.unwrap_or_else(|| "-".to_owned()),
                generation.instances.to_string(),
                format!("{}K", generation.memory_bytes / 1024),
                module.chars().take("sha256:".len() + 12).collect(),
            ]);
        }
    }
    if table.is_empty() {
        return Ok(());
    }
    let out = &mut io::stdout().lock();
    writeln!(out)?;
    table.write(out, 0)
}

fn catalog() -> io::Result<()> {
    let mut table = Table::new(["NAME", "ROLE", "DOES"]);
    for entry in builtin::ALL {
        table.row([entry.name.to_owned(), entry.role.to_string(), entry.about.to_owned()]);
    }
    write(&table, "")
}

fn page(entry: &NativeEntry) -> io::Result<()> {
    io::stdout().lock().write_all(entry.page.as_bytes())
}

fn write(table: &Table, nothing: &str) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    if table.is_empty() {
        return writeln!(out, "{nothing}");
    }
    table.write(out, 0)
}
