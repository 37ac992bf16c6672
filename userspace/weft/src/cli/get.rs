use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weft_policy::resource::kind_names;

use super::{
    Daemon,
    output::{Table, dash, print_json},
};
use crate::{
    admin::api::{ObjectQuery, ObjectView, kind_matches},
    error::{Coded, FAILED, INVALID},
    yaml,
};

/// List resources, whatever source they came from, with their state
#[derive(Debug, Args)]
pub struct Get {
    /// Kind, in any case, singular or plural
    kind: Option<String>,
    /// Name of one object
    name: Option<String>,
    /// Only this namespace [default: all]
    #[arg(short, long)]
    namespace: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    /// As written, with the state as a comment
    Yaml,
    /// A List of the objects, each with its state as `status`
    Json,
}

impl Get {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let kind = self.kind.as_deref().map(known_kind).transpose()?;
        let query = ObjectQuery {
            kind,
            namespace: self.namespace,
            name: self.name,
        };
        let objects = self.daemon.ask(async |client| client.objects(&query).await)?;
        if objects.is_empty()
            && let (Some(kind), Some(name)) = (&query.kind, &query.name)
        {
            return Err(Coded::error(FAILED, anyhow!("{kind} `{name}` not found")));
        }
        match self.output {
            Format::Table => print_table(&objects)?,
            Format::Yaml => print_yaml(&objects)?,
            Format::Json => {
                let items: Vec<_> = objects.iter().map(to_json).collect();
                print_json(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The kind as it is spelled, for what somebody typed.
pub fn known_kind(typed: &str) -> anyhow::Result<String> {
    kind_names()
        .find(|kind| kind_matches(typed, kind))
        .map(str::to_owned)
        .ok_or_else(|| {
            let known = kind_names().collect::<Vec<_>>().join(", ");
            Coded::error(INVALID, anyhow!("unknown kind `{typed}`; known: {known}"))
        })
}

fn print_table(objects: &[ObjectView]) -> io::Result<()> {
    if objects.is_empty() {
        eprintln!("no resources");
        return Ok(());
    }
    let mut table = Table::new(["KIND", "NAMESPACE", "NAME", "STATE", "SOURCE", "REASON"]);
    for object in objects {
        table.row([
            object.key.kind.to_string(),
            dash(object.key.namespace.as_ref()),
            object.key.name.clone(),
            format!("{:?}", object.state),
            object.source.clone(),
            object.reason.clone(),
        ]);
    }
    table.write(&mut io::stdout().lock(), 0)
}

fn print_yaml(objects: &[ObjectView]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for object in objects {
        writeln!(out, "---\n# {}: {:?} ({})", object.key, object.state, object.source)?;
        writeln!(out, "{}", object.manifest.trim_end())?;
    }
    Ok(())
}

fn to_json(object: &ObjectView) -> Value {
    let key = &object.key;
    // One that is not in force may be no document at all.
    let unreadable = || json!({ "kind": key.kind, "metadata": { "namespace": key.namespace, "name": key.name } });
    let documents = yaml::parse(&object.manifest).unwrap_or_default();
    let mut value = documents.first().map_or_else(unreadable, |document| document.to_json());
    if let Value::Object(fields) = &mut value {
        let status = json!({ "state": object.state, "reason": object.reason, "source": object.source });
        fields.insert("status".to_owned(), status);
    }
    value
}
