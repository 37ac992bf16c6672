//! Debian packages: what each is for, how to see that it is not needed, how to install without starting services.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{Scope, root_to_install};
use crate::{exit::Needs, paths, shell};

/// A Debian package, and a reason to install it.
pub struct Package {
    name: &'static str,
    /// Program or file whose presence makes the package needless, wherever it came from.
    provides: Provides,
    /// What it is for, as it is printed.
    why: &'static str,
}

enum Provides {
    Program(&'static str),
    File(&'static str),
    /// Asked for by the caller, who knows that it is missing.
    Asked,
}

/// Needed to build anything.
const BUILD: &[Package] = &[
    Package {
        name: "gcc",
        provides: Provides::Program("cc"),
        why: "links Rust programs",
    },
    Package {
        name: "libc6-dev",
        provides: Provides::File("/usr/include/stdio.h"),
        why: "start files and headers of the C library",
    },
    Package {
        name: "make",
        provides: Provides::Program("make"),
        why: "builds the allocator (jemalloc)",
    },
];

/// Programs that tests and the demo put on the wire, and what makes labs for them.
const TRAFFIC: &[Package] = &[
    Package {
        name: "iproute2",
        provides: Provides::Program("ip"),
        why: "network namespaces of the tests' own",
    },
    Package {
        name: "util-linux",
        provides: Provides::Program("nsenter"),
        why: "runs programs inside them (nsenter), and with fewer capabilities (setpriv)",
    },
    Package {
        name: "systemd",
        provides: Provides::Program("systemd-analyze"),
        why: "checks the unit in userspace/packaging (no service is started)",
    },
    Package {
        name: "nginx",
        provides: Provides::Program("nginx"),
        why: "a real server to mesh (no service is started)",
    },
    Package {
        name: "redis-server",
        provides: Provides::Program("redis-server"),
        why: "counts quotas in tests (no service is started)",
    },
    Package {
        name: "curl",
        provides: Provides::Program("curl"),
        why: "a real client to mesh",
    },
    Package {
        name: "ca-certificates",
        provides: Provides::File("/etc/ssl/certs/ca-certificates.crt"),
        why: "authorities that adapters believe unless told otherwise",
    },
    Package {
        name: "wrk",
        provides: Provides::Program("wrk"),
        why: "a real client that counts requests per second",
    },
    Package {
        name: "musl-tools",
        provides: Provides::Program("musl-gcc"),
        why: "a static client that resolves names without glibc",
    },
];

/// What the bench compares with.
const BENCH: &[Package] = &[
    Package {
        name: "haproxy",
        provides: Provides::Program("haproxy"),
        why: "the leanest HTTP proxy to compare with (no service is started)",
    },
    Package {
        name: "iptables",
        provides: Provides::Program("iptables"),
        why: "redirects to sidecars, in a namespace of the bench's own",
    },
];

/// What boots other kernels.
const GUESTS: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        provides: Provides::Program("qemu-system-x86_64"),
        why: "emulates a machine for other kernels",
    },
    Package {
        name: "xz-utils",
        provides: Provides::Program("xz"),
        why: "unpacks their modules",
    },
];

/// A compiler for the kernel's target with the sources of core.
pub const KERNEL_TOOLCHAIN: &[Package] = &[
    Package {
        name: "rustc-web",
        provides: Provides::Asked,
        why: "compiles the kernel programs",
    },
    Package {
        name: "rust-web-src",
        provides: Provides::Asked,
        why: "the sources of core, for the kernel's target",
    },
];

/// What puts programs from PyPI into virtual environments.
pub const PYTHON: &[Package] = &[Package {
    name: "python3-venv",
    provides: Provides::Asked,
    why: "virtual environments for programs from PyPI",
}];

/// What bpf-linker is built against.
pub const LLVM: &[Package] = &[
    Package {
        name: "llvm-22",
        provides: Provides::Asked,
        why: "llvm-config, which bpf-linker's build asks",
    },
    Package {
        name: "llvm-22-dev",
        provides: Provides::Asked,
        why: "what bpf-linker links against",
    },
];

/// What links WebAssembly, where rustup's linker is not there.
pub const WASM_LINKER: &[Package] = &[Package {
    name: "lld-22",
    provides: Provides::Asked,
    why: "links the filters",
}];

/// Where [`WASM_LINKER`] puts it.
pub const WASM_LINKER_FILE: &str = "/usr/lib/llvm-22/bin/wasm-ld";

/// What fetches and runs the AssemblyScript compiler.
pub const NPM: &[Package] = &[
    Package {
        name: "nodejs",
        provides: Provides::Asked,
        why: "runs the AssemblyScript compiler",
    },
    Package {
        name: "npm",
        provides: Provides::Asked,
        why: "fetches the AssemblyScript compiler and SDK, as locked",
    },
];

/// The packages of `scope` whose program or file is not on this machine.
pub fn missing(scope: Scope) -> Vec<&'static Package> {
    let (traffic, more): (&[Package], &[Package]) = match scope {
        Scope::Build => (&[], &[]),
        Scope::Traffic => (TRAFFIC, &[]),
        Scope::Bench => (TRAFFIC, BENCH),
        Scope::Guests => (TRAFFIC, GUESTS),
    };
    BUILD
        .iter()
        .chain(traffic)
        .chain(more)
        .filter(|package| !package.is_provided())
        .collect()
}

/// Installs `packages`, telling why; starts no service.
///
/// # Errors
/// [`Needs`] where this is not Debian or not root; else apt-get's own failure.
pub fn install(packages: &[&Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    if paths::which("apt-get").is_none() {
        let wanted = packages
            .iter()
            .map(|package| format!("{} ({})", package.name, package.why))
            .collect::<Vec<_>>();
        return Err(Needs(format!(
            "apt-get is not on this machine; install what these Debian packages hold by hand: {}; \
             for the kernel programs `rustup toolchain install nightly --component rust-src` does as well",
            wanted.join(", ")
        ))
        .into());
    }
    root_to_install(&format!("{} (apt-get install)", names.join(" ")))?;
    println!("installing Debian packages:");
    for package in packages {
        println!("  {:<14} {}", package.name, package.why);
    }
    let _quiet = NoServices::new()?;
    shell::run(&mut apt(&["update", "-qq"])).context("fetch the package lists")?;
    let mut install = apt(&["install", "-y", "-qq", "--no-install-recommends"]);
    shell::run(install.args(&names)).with_context(|| format!("install {}", names.join(" ")))
}

fn apt(words: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "-o",
            "Acquire::Retries=3",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Keeps packages from starting their services while it lives (Debian's `policy-rc.d` protocol: 101 = not allowed).
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

// === impl Package ===

impl Package {
    fn is_provided(&self) -> bool {
        match self.provides {
            Provides::Program(name) => paths::which(name).is_some(),
            Provides::File(path) => Path::new(path).exists(),
            Provides::Asked => false,
        }
    }
}

// === impl NoServices ===

impl NoServices {
    fn new() -> Result<Self> {
        // Somebody's own policy stays as it is: containers usually have one that says the same.
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {POLICY}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("xtask: remove {POLICY} by hand: {error}");
        }
    }
}
