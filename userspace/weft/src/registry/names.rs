//! What a registration may say. Names become directories and DNS labels, so both rules hold.

use std::collections::BTreeMap;

use super::{Record, RegistryError};
use crate::admin::api::RegisterRequest;

/// Longest DNS label.
const MAX_LABEL: usize = 63;
/// Longest DNS name: service accounts, and keys and values of labels.
const MAX_NAME: usize = 253;
/// Ports of one workload; each is an entry in kernel tables.
const MAX_PORTS: usize = 128;
/// Labels of one workload.
const MAX_LABELS: usize = 64;
/// Words of the command that are kept, for people to read.
const MAX_COMMAND_WORDS: usize = 4_096;

const DNS_LABEL: &str = "1 to 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit";
const DNS_NAME: &str = "DNS labels (a-z, 0-9, `-`) joined by dots, at most 253 characters";

pub fn check(request: &RegisterRequest) -> Result<(), RegistryError> {
    dns_label("namespace", &request.namespace)?;
    dns_label("service", &request.service)?;
    dns_name("account", &request.account)?;
    labels(&request.labels)?;
    if request.command.len() > MAX_COMMAND_WORDS {
        return invalid("command", &request.command.len().to_string(), "at most 4096 words");
    }
    if request.ports.len() > MAX_PORTS {
        return invalid(
            "ports",
            &request.ports.len().to_string(),
            "at most 128 ports, where one without suffix is two",
        );
    }
    let mut seen = BTreeMap::new();
    for port in &request.ports {
        if port.port == 0 || port.target == 0 {
            return invalid("port", "0", "1 to 65535");
        }
        if seen.insert((port.port, port.protocol), port.target).is_some() {
            return invalid(
                "port",
                &format!("{}/{}", port.port, port.protocol),
                "every service port once",
            );
        }
    }
    Ok(())
}

/// A record comes from a file, which others may have written.
pub fn check_record(record: &Record) -> Result<(), RegistryError> {
    dns_label("namespace", &record.namespace)?;
    dns_label("service", &record.service)?;
    dns_name("account", &record.account)?;
    dns_name("instance", &record.instance)
}

fn labels(labels: &BTreeMap<String, String>) -> Result<(), RegistryError> {
    if labels.len() > MAX_LABELS {
        return invalid("labels", &labels.len().to_string(), "at most 64");
    }
    let plain = |text: &str| {
        text.len() <= MAX_NAME
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
    };
    for (key, value) in labels {
        if key.is_empty() || !plain(key) || !plain(value) {
            return invalid(
                "label",
                &format!("{key}={value}"),
                "letters, digits, `-`, `_`, `.` and `/`",
            );
        }
    }
    Ok(())
}

fn dns_label(field: &'static str, value: &str) -> Result<(), RegistryError> {
    if is_label(value) {
        Ok(())
    } else {
        invalid(field, value, DNS_LABEL)
    }
}

fn dns_name(field: &'static str, value: &str) -> Result<(), RegistryError> {
    if value.len() <= MAX_NAME && value.split('.').all(is_name_part) {
        Ok(())
    } else {
        invalid(field, value, DNS_NAME)
    }
}

fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_name_part(text)
}

fn is_name_part(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.bytes().all(|b| alphanumeric(b) || b == b'-')
        && text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().next_back().is_some_and(alphanumeric)
}

fn invalid<T>(field: &'static str, value: &str, expected: &'static str) -> Result<T, RegistryError> {
    let value = value.chars().take(MAX_NAME).collect();
    Err(RegistryError::Invalid { field, value, expected })
}
