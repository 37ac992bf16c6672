//! What the daemon is told: flags, and the same keys in an optional file (`--config`). A flag beats the file.
//!
//! [`KEYS`] is the only list: flag, key, help and meaning of a setting stand there together.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, builder::ValueParser};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_dataplane::{SIZED_MAPS, ShortCircuit, SizedMap};
use weft_policy::compile::{DEFAULT_VIP4, DEFAULT_VIP6};

use crate::{
    state_dir::StateDir,
    yaml::{self, Data, Node},
};

/// A bpffs is mounted there if there is none.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/weft";

/// Smaller ranges than these hold no mesh: 14 IPv4 services, or none whose IPv6 address can be told from its IPv4 one.
const MAX_PREFIX4: u8 = 28;
const MAX_PREFIX6: u8 = 112;
/// IFNAMSIZ without its end.
const MAX_DEVICE_NAME: usize = 15;
/// A config file is a handful of lines; larger is a wrong file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Connections through the proxy end within this after a hand-over, or are cut. Longer: an upgrade leaves the old process,
/// with the policy it had, around for longer; shorter: more is cut that would have ended.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
/// A day: more is not a drain.
const MAX_DRAIN_SECONDS: u64 = 86_400;

/// Everything the daemon is told. Paths are as they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Folder of resources, watched. `None`: only what is applied.
    pub resources: Option<PathBuf>,
    pub state: StateDir,
    pub bpffs: PathBuf,
    /// `None`: `<cgroup2 mount>/weft.slice`, made if missing.
    pub cgroup: Option<PathBuf>,
    /// Ranges of virtual IPs, in the order in which they are used.
    pub vip4: Vec<Ipv4Net>,
    pub vip6: Vec<Ipv6Net>,
    /// Filter of the log on stderr, in the words of `tracing_subscriber::EnvFilter`.
    pub log: String,
    pub access_log: AccessLog,
    pub short_circuit: ShortCircuit,
    /// Judge and capture what arrives in the daemon's network namespace, also from clients that are not captured.
    pub inbound: bool,
    /// Devices of that namespace whose packets are judged.
    pub devices: Vec<String>,
    /// Take over from a daemon that runs, instead of being refused.
    pub take_over: bool,
    /// What connections through the proxy get to end after another daemon took over.
    pub drain: Duration,
    /// One of so many connections gets its open and its close reported by the kernel. At least 1, which is all.
    pub flow_sample: u32,
    /// Sizes of kernel tables that differ from what the programs say.
    pub map_sizes: Vec<(String, u32)>,
}

/// One line a request, an ended connection or a refusal, on stdout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccessLog {
    #[default]
    Text,
    Json,
    Off,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read config file {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Invalid {
        path: PathBuf,
        line: usize,
        column: usize,
        reason: String,
    },
    #[error("--{flag} {value}: {reason}")]
    Flag {
        flag: &'static str,
        value: String,
        reason: String,
    },
}

/// One setting.
struct Key {
    name: &'static str,
    value: &'static str,
    /// May be given more than once; in the file, a list.
    many: bool,
    help: &'static str,
    set: fn(&mut DaemonConfig, &[String]) -> Result<(), String>,
}

const KEYS: &[Key] = &[
    Key {
        name: "resources",
        value: "DIR",
        many: false,
        help: "Folder of YAML resources, watched and applied on change",
        set: |config, values| one(values, |value| config.resources = Some(value.into())),
    },
    Key {
        name: "state-dir",
        value: "DIR",
        many: false,
        help: "Stands for both /run/weft (admin socket) and /var/lib/weft (what outlives the machine)",
        set: |config, values| one(values, |value| config.state = StateDir::new(Some(Path::new(value)))),
    },
    Key {
        name: "bpffs",
        value: "DIR",
        many: false,
        help: "Where kernel programs and maps are pinned; a bpffs is mounted there if there is none [default: /sys/fs/bpf/weft]",
        set: |config, values| one(values, |value| config.bpffs = value.into()),
    },
    Key {
        name: "cgroup",
        value: "DIR",
        many: false,
        help: "The captured cgroup, which must exist [default: weft.slice below the cgroup2 mount, made if missing]",
        set: |config, values| one(values, |value| config.cgroup = Some(value.into())),
    },
    Key {
        name: "vip-cidr",
        value: "NET",
        many: true,
        help: "Range of virtual IPs, IPv4 or IPv6; may be repeated [default: 240.240.0.0/16 and 2001:2::/48]",
        set: set_vip_cidrs,
    },
    Key {
        name: "log",
        value: "FILTER",
        many: false,
        help: "What is logged on stderr: error, warn, info, debug, trace, or a filter like weft_proxy=debug,info [default: info]",
        set: |config, values| one(values, |value| config.log = value.to_owned()),
    },
    Key {
        name: "access-log",
        value: "FORMAT",
        many: false,
        help: "Access log on stdout: text, json or off [default: text]",
        set: |config, values| match values {
            [value] => {
                config.access_log = match value.as_str() {
                    "text" => AccessLog::Text,
                    "json" => AccessLog::Json,
                    "off" => AccessLog::Off,
                    _ => return Err(format!("`{value}` is no format; expected text, json or off")),
                };
                Ok(())
            }
            _ => Err("expected one value".to_owned()),
        },
    },
    Key {
        name: "short-circuit",
        value: "WHEN",
        many: false,
        help: "Whether `acceleration` in resources is carried out: auto (if the self-test finds this kernel fit), off, or force [default: auto]",
        set: |config, values| match values {
            [value] => {
                config.short_circuit = match value.as_str() {
                    "auto" => ShortCircuit::Auto,
                    "off" => ShortCircuit::Off,
                    "force" => ShortCircuit::Force,
                    _ => return Err(format!("`{value}` is not known; expected auto, off or force")),
                };
                Ok(())
            }
            _ => Err("expected one value".to_owned()),
        },
    },
    Key {
        name: "inbound",
        value: "WHERE",
        many: false,
        help: "Where connections to workloads are judged before they are accepted, and handed to the proxy where a rule works \
               per request, also those of clients outside the mesh: off, or netns (the daemon's network namespace) \
               [default: off: what is denied is dropped at the workload's socket]",
        set: |config, values| match values {
            [value] => {
                config.inbound = match value.as_str() {
                    "off" => false,
                    "netns" => true,
                    _ => return Err(format!("`{value}` is not known; expected off or netns")),
                };
                Ok(())
            }
            _ => Err("expected one value".to_owned()),
        },
    },
    Key {
        name: "flow-sample",
        value: "N",
        many: false,
        help: "Report the open and close of 1 in N connections as flow events; denials and counters are always whole [default: 1]",
        set: |config, values| match values {
            [value] => {
                config.flow_sample = value
                    .parse()
                    .ok()
                    .filter(|n| *n >= 1)
                    .ok_or_else(|| format!("`{value}` is no sample; expected a whole number of at least 1"))?;
                Ok(())
            }
            _ => Err("expected one value".to_owned()),
        },
    },
    Key {
        name: "device",
        value: "NAME",
        many: true,
        help: "Network device whose packets are judged in both directions (tc): for senders that have no socket here, such \
               as virtual machines behind a bridge; may be repeated",
        set: set_devices,
    },
    Key {
        name: TAKE_OVER,
        value: "BOOL",
        many: false,
        help: "Take over from the daemon that runs with the same folders, without a gap; it drains and ends. With none there, an ordinary start [default: false: refused]",
        set: |config, values| {
            let [value] = values else {
                return Err("expected one value".to_owned());
            };
            let known = || format!("`{value}` is not known; expected true or false");
            config.take_over = value.parse().map_err(|_| known())?;
            Ok(())
        },
    },
    Key {
        name: "drain",
        value: "SECONDS",
        many: false,
        help: "What connections through the proxy get to end after another daemon took over; the rest is cut [default: 30]",
        set: |config, values| {
            let seconds = values
                .first()
                .filter(|_| values.len() == 1)
                .and_then(|value| value.parse().ok());
            let seconds = seconds.filter(|seconds| *seconds <= MAX_DRAIN_SECONDS);
            let expected = || format!("expected a number of seconds, at most {MAX_DRAIN_SECONDS}");
            config.drain = seconds.map(Duration::from_secs).ok_or_else(expected)?;
            Ok(())
        },
    },
    Key {
        name: "map-size",
        value: "MAP=N",
        many: true,
        help: "Size of a kernel table when it is made, in entries (events: bytes); one that is there keeps its own; may be repeated \
               [default: addrs=262144 backends=131072 conns=65536 dests=262144 edges=16384 events=1048576 externals=4096 \
               flows=65536 inbound=4096 listen=16384 local=8192 netns=4096 policy=131072 rules=16384 rx=16384 tx=16384 \
               workloads=8192]",
        set: |config, values| {
            config.map_sizes = values.iter().map(|value| map_size(value)).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
];

/// The key that a daemon adds when it starts its own successor.
pub const TAKE_OVER: &str = "take-over";

fn map_size(text: &str) -> Result<(String, u32), String> {
    let (name, size) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` names no size; expected one like edges=65536"))?;
    let map = SizedMap::named(name).ok_or_else(|| {
        let names: Vec<&str> = SIZED_MAPS.iter().map(|map| map.name).collect();
        format!(
            "`{name}` is no table with a size to choose; expected one of {}",
            names.join(", ")
        )
    })?;
    let size = size
        .parse()
        .ok()
        .filter(|size| map.takes(*size))
        .ok_or_else(|| format!("`{size}` is no size of {name}; expected {}", map.expected()))?;
    Ok((name.to_owned(), size))
}

/// The flags of `weft daemon`; they become a config by [`DaemonArgs::config`].
#[derive(Debug, Clone, Default)]
pub struct DaemonArgs {
    config: Option<PathBuf>,
    /// By index into [`KEYS`].
    flags: Vec<(usize, Vec<String>)>,
}

// === impl DaemonConfig ===

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            resources: None,
            state: StateDir::default(),
            bpffs: DEFAULT_BPFFS.into(),
            cgroup: None,
            vip4: vec![DEFAULT_VIP4],
            vip6: vec![DEFAULT_VIP6],
            log: "info".to_owned(),
            access_log: AccessLog::default(),
            short_circuit: ShortCircuit::default(),
            inbound: false,
            devices: Vec::new(),
            take_over: false,
            drain: DEFAULT_DRAIN,
            flow_sample: 1,
            map_sizes: Vec::new(),
        }
    }
}

impl DaemonConfig {
    /// Reads the text of a config file over what is set already. `path` is for messages.
    pub fn read(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let invalid = |line, column, reason| ConfigError::Invalid {
            path: path.to_owned(),
            line,
            column,
            reason,
        };
        let documents = yaml::parse(text).map_err(|error| invalid(error.line, error.column, error.reason))?;
        let wrong = |node: &Node, reason: String| invalid(node.line, node.column, reason);
        if let Some(second) = documents.get(1) {
            return Err(wrong(second, "a config file is one document".to_owned()));
        }
        let Some(document) = documents.first() else {
            return Ok(());
        };
        let Data::Map(entries) = &document.data else {
            return Err(wrong(
                document,
                format!("expected keys and values; known keys: {}", known_keys()),
            ));
        };
        for (name, value) in entries {
            let text = name.text().unwrap_or_default();
            let key = KEYS
                .iter()
                .find(|key| key.name == text)
                .ok_or_else(|| wrong(name, format!("unknown key `{text}`; known keys: {}", known_keys())))?;
            let values = key.values(value).map_err(|reason| wrong(value, reason))?;
            (key.set)(self, &values).map_err(|reason| wrong(value, format!("{text}: {reason}")))?;
        }
        Ok(())
    }
}

fn known_keys() -> String {
    KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
}

fn one(values: &[String], set: impl FnOnce(&str)) -> Result<(), String> {
    match values {
        [value] if !value.is_empty() => {
            set(value);
            Ok(())
        }
        _ => Err("expected one value".to_owned()),
    }
}

fn set_devices(config: &mut DaemonConfig, values: &[String]) -> Result<(), String> {
    for value in values {
        if value.is_empty() || value.len() > MAX_DEVICE_NAME || value.contains(['/', '%']) {
            return Err(format!("`{value}` is no name of a network device"));
        }
    }
    config.devices = values.to_vec();
    Ok(())
}

/// Ranges of a family replace the default of that family.
fn set_vip_cidrs(config: &mut DaemonConfig, values: &[String]) -> Result<(), String> {
    let (mut vip4, mut vip6) = (Vec::new(), Vec::new());
    for value in values {
        let net: IpNet = value
            .parse()
            .map_err(|_| format!("`{value}` is no range; expected one like 240.240.0.0/16"))?;
        if net.trunc() != net {
            return Err(format!(
                "`{value}` has bits beyond its prefix; did you mean {}?",
                net.trunc()
            ));
        }
        match net {
            IpNet::V4(net) if net.prefix_len() <= MAX_PREFIX4 => vip4.push(net),
            IpNet::V6(net) if net.prefix_len() <= MAX_PREFIX6 => vip6.push(net),
            IpNet::V4(_) => return Err(format!("`{value}` is too small; expected /{MAX_PREFIX4} or larger")),
            IpNet::V6(_) => return Err(format!("`{value}` is too small; expected /{MAX_PREFIX6} or larger")),
        }
    }
    config.vip4 = if vip4.is_empty() { vec![DEFAULT_VIP4] } else { vip4 };
    config.vip6 = if vip6.is_empty() { vec![DEFAULT_VIP6] } else { vip6 };
    Ok(())
}

// === impl Key ===

impl Key {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name)
            .long(self.name)
            .value_name(self.value)
            .help(self.help)
            .value_parser(ValueParser::string())
            .action(if self.many { ArgAction::Append } else { ArgAction::Set });
        if self.value == "BOOL" {
            return arg.num_args(0..=1).require_equals(true).default_missing_value("true");
        }
        arg
    }

    fn values(&self, node: &Node) -> Result<Vec<String>, String> {
        let scalar = |node: &Node| node.text().map(str::to_owned);
        let values = match &node.data {
            Data::List(items) if self.many => items.iter().map(scalar).collect(),
            _ => scalar(node).map(|value| vec![value]),
        };
        let expected = if self.many {
            "one value or a list of them"
        } else {
            "one value"
        };
        values.ok_or_else(|| format!("{}: expected {expected}", self.name))
    }
}

// === impl DaemonArgs ===

impl DaemonArgs {
    /// Defaults, then the file, then the flags.
    pub fn config(&self) -> Result<DaemonConfig, ConfigError> {
        let mut config = DaemonConfig::default();
        if let Some(path) = &self.config {
            let text = read_file(path).map_err(|source| ConfigError::Unreadable {
                path: path.clone(),
                source,
            })?;
            config.read(path, &text)?;
        }
        for (index, values) in &self.flags {
            let key = &KEYS[*index];
            let wrong = |reason| ConfigError::Flag {
                flag: key.name,
                value: values.join(" "),
                reason,
            };
            (key.set)(&mut config, values).map_err(wrong)?;
        }
        Ok(config)
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_CONFIG_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {MAX_CONFIG_BYTES} bytes"),
        ));
    }
    fs::read_to_string(path)
}

impl Args for DaemonArgs {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("YAML or JSON file with these same keys; a flag beats the file")
            .value_parser(ValueParser::path_buf());
        command.arg(config).args(KEYS.iter().map(Key::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DaemonArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one("config").cloned();
        self.flags = KEYS
            .iter()
            .enumerate()
            .filter_map(|(index, key)| Some((index, matches.get_many(key.name)?.cloned().collect())))
            .collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DaemonConfig, String> {
        let mut config = DaemonConfig::default();
        config
            .read(Path::new("weft.yaml"), text)
            .map_err(|error| error.to_string())?;
        Ok(config)
    }

    fn flags(words: &[&str]) -> Result<DaemonConfig, String> {
        let command = DaemonArgs::augment_args(Command::new("daemon").no_binary_name(true));
        let matches = command.try_get_matches_from(words).map_err(|error| error.to_string())?;
        let args = DaemonArgs::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        args.config().map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        assert_eq!(flags(&[]), Ok(DaemonConfig::default()));
        assert_eq!(read(""), Ok(DaemonConfig::default()));
        assert_eq!(read("# nothing\n---\n"), Ok(DaemonConfig::default()));
    }

    #[test]
    fn file_and_flags_say_the_same() {
        let expected = DaemonConfig {
            resources: Some("r".into()),
            state: StateDir::new(Some(Path::new("s"))),
            bpffs: "b".into(),
            cgroup: Some("c".into()),
            vip4: vec!["10.9.0.0/16".parse().expect("a range")],
            vip6: vec![DEFAULT_VIP6],
            log: "debug".into(),
            access_log: AccessLog::Json,
            short_circuit: ShortCircuit::Off,
            inbound: true,
            devices: vec!["eth0".into(), "eth1.7".into()],
            take_over: true,
            drain: Duration::from_secs(5),
            flow_sample: 100,
            map_sizes: [("edges", 64), ("events", 8192), ("policy", 262_144)]
                .map(|(map, size)| (map.to_owned(), size))
                .into(),
        };
        let yaml = "resources: r\nstate-dir: s\nbpffs: b\ncgroup: c\nvip-cidr: [10.9.0.0/16]\nlog: debug\naccess-log: json\nshort-circuit: off\ninbound: netns\ndevice: [eth0, eth1.7]\ntake-over: true\ndrain: 5\nflow-sample: 100\nmap-size: [edges=64, events=8192, policy=262144]\n";
        let json = r#"{"resources":"r","state-dir":"s","bpffs":"b","cgroup":"c","vip-cidr":"10.9.0.0/16","log":"debug","access-log":"json","short-circuit":"off","inbound":"netns","device":["eth0","eth1.7"],"take-over":true,"drain":5,"flow-sample":100,"map-size":["edges=64","events=8192","policy=262144"]}"#;
        let words = "--resources r --state-dir s --bpffs b --cgroup c --vip-cidr 10.9.0.0/16 --log debug --access-log json --short-circuit off --inbound netns --device eth0 --device eth1.7 --take-over --drain 5 --flow-sample 100 --map-size edges=64 --map-size events=8192 --map-size policy=262144";
        assert_eq!(read(yaml).as_ref(), Ok(&expected));
        assert_eq!(read(json).as_ref(), Ok(&expected));
        assert_eq!(flags(&words.split(' ').collect::<Vec<_>>()).as_ref(), Ok(&expected));
    }

    #[test]
    fn help_says_how_large_every_table_is() {
        let key = KEYS.iter().find(|key| key.name == "map-size").expect("a key");
        let (_, said) = key.help.split_once("[default: ").expect("defaults");
        let sizes: Vec<String> = SIZED_MAPS
            .iter()
            .map(|map| format!("{}={}", map.name, map.default))
            .collect();
        assert_eq!(said.trim_end_matches(']'), sizes.join(" "));
    }

    #[test]
    fn a_flag_beats_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("weft.yaml");
        fs::write(&file, "bpffs: from-file\nvip-cidr: [10.1.0.0/16, 10.2.0.0/16]\n").expect("written");
        let file = file.to_str().expect("plain path");
        let config = flags(&["--config", file, "--vip-cidr", "10.3.0.0/16"]).expect("good");
        assert_eq!((config.bpffs, config.vip4.len()), ("from-file".into(), 1));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, expected) in [
            (
                "bpfs: x\n",
                "weft.yaml:1:1: unknown key `bpfs`; known keys: resources, state-dir",
            ),
            (
                "log: info\nresources: [a]\n",
                "weft.yaml:2:12: resources: expected one value",
            ),
            (
                "vip-cidr:\n- 10.0.0.0/33\n",
                "weft.yaml:2:3: vip-cidr: `10.0.0.0/33` is no range",
            ),
            (
                "vip-cidr: 10.0.0.1/16\n",
                "weft.yaml:1:11: vip-cidr: `10.0.0.1/16` has bits beyond its prefix; did you mean",
            ),
            (
                "vip-cidr: 10.0.0.0/30\n",
                "weft.yaml:1:11: vip-cidr: `10.0.0.0/30` is too small",
            ),
            (
                "take-over: maybe\n",
                "weft.yaml:1:12: take-over: `maybe` is not known; expected true or false",
            ),
            (
                "drain: 30s\n",
                "weft.yaml:1:8: drain: expected a number of seconds, at most 86400",
            ),
            (
                "flow-sample: 0\n",
                "weft.yaml:1:14: flow-sample: `0` is no sample; expected a whole number",
            ),
            (
                "map-size: config=2\n",
                "weft.yaml:1:11: map-size: `config` is no table with a size to choose; expected one of addrs, backends, conns, ",
            ),
            (
                "map-size: 64\n",
                "weft.yaml:1:11: map-size: `64` names no size; expected one like edges=65536",
            ),
            (
                "map-size: [policy=200000, conns=15]\n",
                "weft.yaml:1:11: map-size: `15` is no size of conns; expected a number of entries from 16 to 16777216",
            ),
            (
                "map-size: events=5000\n",
                "weft.yaml:1:11: map-size: `5000` is no size of events; expected bytes, a power of two from 4096 to 1073741824",
            ),
            ("- a\n", "weft.yaml:1:1: expected keys and values"),
            ("a: [\n", "weft.yaml:2:1: not YAML"),
            ("log: a\nlog: b\n", "weft.yaml:2:1: `log` is here twice"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        assert_eq!(
            flags(&["--vip-cidr", "x"]).expect_err("no range"),
            "--vip-cidr x: `x` is no range; expected one like 240.240.0.0/16"
        );
        assert!(
            flags(&["--config", "/does/not/exist"])
                .expect_err("no file")
                .starts_with("read config file")
        );
    }
}
