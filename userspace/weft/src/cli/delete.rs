use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::Value;
use weft_policy::ObjectRef;

use super::{Daemon, files, get::known_kind};
use crate::{
    error::{self, Code, FAILED, INVALID},
    yaml,
};

/// Delete resources that were stored with `weft apply`
#[derive(Debug, Args)]
pub struct Delete {
    /// Kind, in any case, singular or plural
    #[arg(required_unless_present = "files", requires = "name", conflicts_with = "files")]
    kind: Option<String>,
    #[arg(conflicts_with = "files")]
    name: Option<String>,
    /// Namespace of the object [default: `default`, or none for a mesh-wide one]
    #[arg(short, long, conflicts_with = "files")]
    namespace: Option<String>,
    /// Delete what these files (or the files of these folders, or `-`) describe
    #[arg(short, long = "file", value_name = "FILE|DIR", num_args = 1..)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    daemon: Daemon,
}

impl Delete {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let mut failed = ExitCode::SUCCESS;
        for object in self.objects()? {
            match self.daemon.ask(async |client| client.delete(&object).await) {
                Ok(outcome) => println!("{} deleted", outcome.object),
                Err(error) if self.files.len() + usize::from(self.kind.is_some()) == 1 && self.files.is_empty() => {
                    return Err(error);
                }
                Err(error) => {
                    error::report(&error.context(format!("delete {object}")));
                    failed = FAILED.into();
                }
            }
        }
        Ok(failed)
    }

    fn objects(&self) -> anyhow::Result<Vec<ObjectRef>> {
        if let (Some(kind), Some(name)) = (&self.kind, &self.name) {
            let namespace = self.namespace.clone();
            return Ok(vec![ObjectRef {
                kind: known_kind(kind)?.into(),
                namespace: namespace.map(Into::into),
                name: name.clone(),
            }]);
        }
        let mut objects = Vec::new();
        for input in files::read_all(&self.files)? {
            let text = String::from_utf8(input.bytes)
                .with_context(|| format!("read {}", input.name))
                .code(INVALID)?;
            for document in yaml::parse(&text)
                .map_err(|error| anyhow!("{}:{error}", input.name))
                .code(INVALID)?
            {
                let named = identify(&document.to_json())
                    .with_context(|| format!("{}:{}: expected kind and metadata.name", input.name, document.line));
                objects.push(named.code(INVALID)?);
            }
        }
        Ok(objects)
    }
}

fn identify(document: &Value) -> Option<ObjectRef> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let metadata = document.get("metadata")?;
    Some(ObjectRef {
        kind: text(document.get("kind")?)?.into(),
        namespace: metadata.get("namespace").and_then(text).map(Into::into),
        name: text(metadata.get("name")?)?,
    })
}
