use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use weft_policy::{DataPath, Explanation, Protocol, Verdict};

use super::{
    Daemon,
    output::{Format, print_json},
};
use crate::admin::api::ExplainRequest;

/// Say which object decides about a connection or a request, and which way it goes
#[derive(Debug, Args)]
pub struct Explain {
    /// Account of the client
    #[arg(long, value_name = "NAMESPACE/ACCOUNT")]
    from: String,
    /// Service (SERVICE, NAMESPACE/SERVICE, SERVICE.NAMESPACE), virtual IP, or address of an endpoint
    #[arg(long, value_name = "SERVICE|ADDRESS")]
    to: String,
    /// Port of the service, or of the endpoint
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    protocol: Transport,
    /// HTTP method of the request
    #[arg(long, value_name = "M")]
    method: Option<String>,
    /// HTTP path of the request
    #[arg(long, value_name = "P")]
    path: Option<String>,
    /// HTTP header of the request; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = key_value)]
    headers: Vec<(String, String)>,
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

/// `KEY=VALUE`
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

impl Explain {
    pub fn exec(self) -> anyhow::Result<ExitCode> {
        let request = ExplainRequest {
            from: self.from,
            to: self.to,
            port: self.port,
            protocol: match self.protocol {
                Transport::Tcp => Protocol::Tcp,
                Transport::Udp => Protocol::Udp,
            },
            method: self.method,
            path: self.path,
            headers: self.headers.into_iter().collect::<BTreeMap<_, _>>(),
        };
        let explanation = self.daemon.ask(async |client| client.explain(&request).await)?;
        match self.output {
            Format::Json => print_json(&explanation)?,
            Format::Text => print(&explanation)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(explanation: &Explanation) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    let verdict = match explanation.verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "DENY",
        Verdict::Audit => "allow and report (audit): it would be denied",
        Verdict::NeedsHttp => "depends on the request (say --method and --path)",
    };
    let path = match explanation.path {
        DataPath::Kernel => "kernel",
        DataPath::Proxy => "proxy",
        DataPath::External => "foreign proxy",
    };
    writeln!(out, "verdict  {verdict}")?;
    match &explanation.rule {
        Some(rule) => writeln!(out, "rule     {rule}")?,
        None => writeln!(out, "rule     none speaks about it")?,
    }
    // Beside each other only where both dimensions have a say.
    if let Some(network) = &explanation.network {
        writeln!(out, "network  {network}")?;
        match &explanation.access {
            Some(access) => writeln!(out, "access   {access}")?,
            None => writeln!(out, "access   none speaks about it")?,
        }
    }
    writeln!(out, "path     {path}")?;
    writeln!(out, "why      {}", explanation.why)?;
    for (number, step) in explanation.steps.iter().enumerate() {
        writeln!(out, "{:>7}. {step}", number + 1)?;
    }
    Ok(())
}
