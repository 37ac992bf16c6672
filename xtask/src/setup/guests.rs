//! Debian's kernels for `cargo xtask vm-test`, and the busybox of their initramfs: downloaded by apt-get and unpacked below
//! `target/vm`; nothing is installed, and the machine's own package sources stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{paths, shell};

/// A Debian kernel of the matrix.
pub struct DebianKernel {
    /// Its series, as the table calls it.
    pub name: &'static str,
    /// Where it comes from, if not from Debian 12 with its security updates.
    suite: Option<&'static str>,
}

/// The matrix: Debian 12's own kernel, and the one of its backports, which is Debian 13's.
pub const KERNELS: [DebianKernel; 2] = [
    DebianKernel {
        name: "6.1",
        suite: None,
    },
    DebianKernel {
        name: "6.12",
        suite: Some("bookworm-backports"),
    },
];

/// Depends on the newest image of its suite.
const META_PACKAGE: &str = "linux-image-amd64";
const BUSYBOX: &str = "busybox-static";

/// Where Debian's packages are, unless the machine's own sources say otherwise, by the label of their index.
const MIRRORS: [(&str, &str, &[&str]); 2] = [
    (
        "Debian",
        "http://deb.debian.org/debian",
        &["bookworm", "bookworm-backports"],
    ),
    (
        "Debian-Security",
        "http://deb.debian.org/debian-security",
        &["bookworm-security"],
    ),
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt-get with sources, lists and cache of our own.
struct Apt {
    dir: PathBuf,
}

/// Folder of a kernel's unpacked package.
pub fn tree(kernel: &DebianKernel) -> PathBuf {
    paths::vm().join(kernel.name).join("tree")
}

/// The static busybox.
pub fn busybox() -> PathBuf {
    paths::vm().join("busybox/bin/busybox")
}

/// Downloads and unpacks what is not there. What is there stays, though Debian may have a newer one by now: remove
/// `target/vm` to have it anew.
///
/// # Errors
/// apt-get is not there or fails.
pub fn ensure() -> Result<()> {
    let missing: Vec<&DebianKernel> = KERNELS.iter().filter(|kernel| !tree(kernel).exists()).collect();
    if missing.is_empty() && busybox().exists() {
        return Ok(());
    }
    println!(
        "fetching Debian's kernels into {}: guests of vm-test boot them",
        paths::vm().display()
    );
    let apt = Apt::new()?;
    if !busybox().exists() {
        apt.unpack(BUSYBOX, &paths::vm().join("busybox"))?;
    }
    for kernel in missing {
        let image = apt.newest_image(kernel.suite)?;
        println!("  {:<5} {image}", kernel.name);
        apt.unpack(&image, &tree(kernel))?;
    }
    Ok(())
}

// === impl Apt ===

impl Apt {
    fn new() -> Result<Self> {
        if paths::which("apt-get").is_none() {
            bail!("apt-get is not on this machine: `cargo xtask vm-test --kernel IMAGE` boots a kernel that you have");
        }
        let dir = paths::vm().join("apt");
        for sub in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("make {sub} in {}", dir.display()))?;
        }
        let sources: String = MIRRORS
            .iter()
            .map(|(label, default, suites)| {
                let uri = own_mirror(label).unwrap_or_else(|| (*default).to_owned());
                let suites = suites.join(" ");
                format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n\n")
            })
            .collect();
        fs::write(dir.join("sources/debian.sources"), sources).context("write the package sources")?;
        let apt = Self { dir };
        shell::run(apt.command("apt-get").args(["update", "-qq"])).context("fetch the package lists")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={dir}/sources"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // Else a download into a folder of ours is complained about.
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// What the newest meta package depends on: `linux-image-6.1.0-54-amd64`.
    fn newest_image(&self, suite: Option<&str>) -> Result<String> {
        let package = suite.map_or_else(|| META_PACKAGE.to_owned(), |suite| format!("{META_PACKAGE}/{suite}"));
        let mut show = self.command("apt-cache");
        show.args(["show", "--no-all-versions", &package]);
        let text = shell::read(&mut show).with_context(|| format!("ask for {package}"))?;
        image_of(&text).with_context(|| format!("{package} depends on no image"))
    }

    /// Downloads a package and unpacks it to `tree`, which is there only when all of it is.
    fn unpack(&self, package: &str, tree: &Path) -> Result<()> {
        let folder = self.dir.join("download");
        let partial = tree.with_extension("partial");
        for stale in [&folder, &partial] {
            if stale.exists() {
                fs::remove_dir_all(stale).with_context(|| format!("remove {}", stale.display()))?;
            }
        }
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
        let mut download = self.command("apt-get");
        shell::run(download.args(["download", "-qq", package]).current_dir(&folder))
            .with_context(|| format!("download {package}"))?;
        let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        let file = entries
            .flatten()
            .next()
            .with_context(|| format!("apt-get downloaded no {package}"))?;
        shell::run(Command::new("dpkg").arg("-x").arg(file.path()).arg(&partial))
            .with_context(|| format!("unpack {package}"))?;
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        fs::rename(&partial, tree).with_context(|| format!("make {}", tree.display()))
    }
}

/// The place the machine's own sources have for the index of this label.
fn own_mirror(label: &str) -> Option<String> {
    let mut targets = Command::new("apt-get");
    let text = shell::ask(targets.args(["indextargets", "--format", "$(LABEL) $(CODENAME) $(REPO_URI)"]))?;
    let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    words
        .filter(|words| words.len() == 3 && words[0] == label && words[1].starts_with("bookworm"))
        .map(|words| words[2].trim_end_matches('/').to_owned())
        .next()
}

/// The image in a `Depends:` line: `Depends: linux-image-6.1.0-54-amd64 (= 6.1.190-1)`.
fn image_of(control: &str) -> Option<String> {
    let line = control.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let mut packages = line.split(',').filter_map(|package| package.split_whitespace().next());
    packages
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_what_the_meta_package_depends_on() {
        let control = "Package: linux-image-amd64\nDepends: linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1)\n";
        assert_eq!(image_of(control).as_deref(), Some("linux-image-6.12.95+deb12-amd64"));
        assert_eq!(image_of("Package: nginx\n"), None);
    }
}
