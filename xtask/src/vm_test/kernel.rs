//! A kernel to boot: its image, its release, its modules.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// A kernel image and what belongs to it.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What it is called on the terminal and in names of files: `6.1`, or the release of a kernel that was named.
    pub name: String,
    pub image: PathBuf,
    /// `uname -r` of it.
    pub release: String,
    /// Folder `RELEASE` with its modules and `modules.dep`; `None`: all that is needed is built in.
    pub modules: Option<PathBuf>,
}

/// Magic of the header, offset of the pointer to the version, and what that pointer is relative to
/// (Documentation/arch/x86/boot.rst).
const HEADER: (usize, &[u8]) = (0x202, b"HdrS");
const VERSION_POINTER: usize = 0x20e;
const VERSION_BASE: usize = 0x200;
/// The real-mode part of an image, where the version is, is shorter than this.
const HEAD: u64 = 64 * 1024;

// === impl Kernel ===

impl Kernel {
    /// The kernel of `image`, its modules where a distribution's package or `make modules_install` puts them beside it:
    /// `lib/modules/RELEASE` or `modules/RELEASE` in the image's folder or the one above.
    ///
    /// # Errors
    /// It is no x86 kernel image, or modules without `modules.dep` cannot be indexed.
    pub fn of_image(name: Option<&str>, image: &Path, busybox: &Path) -> Result<Self> {
        let mut head = Vec::new();
        let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
        file.take(HEAD)
            .read_to_end(&mut head)
            .with_context(|| format!("read {}", image.display()))?;
        let release = release_of(&head).with_context(|| format!("{} is no bzImage", image.display()))?;
        let image = image
            .canonicalize()
            .with_context(|| format!("find {}", image.display()))?;
        let modules = image
            .ancestors()
            .skip(1)
            .take(2)
            .flat_map(|folder| ["lib/modules", "modules"].map(|sub| folder.join(sub).join(&release)))
            .find(|folder| folder.is_dir());
        if let Some(modules) = &modules {
            index(modules, &release, busybox)?;
        }
        Ok(Self {
            name: name.map_or_else(|| release.clone(), str::to_owned),
            image,
            release,
            modules,
        })
    }

    /// The one kernel image in `tree/boot`.
    ///
    /// # Errors
    /// There is none, or more than one, or as [`Kernel::of_image`].
    pub fn of_tree(name: &str, tree: &Path, busybox: &Path) -> Result<Self> {
        let boot = tree.join("boot");
        let entries = fs::read_dir(&boot).with_context(|| format!("list {}", boot.display()))?;
        let images: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
            })
            .collect();
        let [image] = images.as_slice() else {
            bail!("{} should hold one kernel image, found {images:?}", boot.display());
        };
        Self::of_image(Some(name), image, busybox)
    }
}

/// The first word of the version in a bzImage's header: `6.1.0-54-amd64 (debian-kernel@lists.debian.org) #1 SMP ...`.
fn release_of(head: &[u8]) -> Option<String> {
    let (offset, magic) = HEADER;
    if head.get(offset..offset + magic.len())? != magic {
        return None;
    }
    let pointer = u16::from_le_bytes(head.get(VERSION_POINTER..VERSION_POINTER + 2)?.try_into().ok()?);
    let text = head.get(usize::from(pointer) + VERSION_BASE..)?;
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    String::from_utf8(text[..end].to_vec())
        .ok()
        .filter(|release| !release.is_empty())
}

/// `modules.dep`, which Debian's packages leave to their installation.
fn index(modules: &Path, release: &str, busybox: &Path) -> Result<()> {
    if fs::metadata(modules.join("modules.dep")).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    // depmod -b BASE indexes BASE/lib/modules/RELEASE.
    let base = modules
        .ancestors()
        .nth(3)
        .context("modules at the root of a file system")?;
    ensure!(
        base.join("lib/modules").join(release) == modules,
        "{} has no modules.dep, and only a folder lib/modules/{release} can be indexed",
        modules.display()
    );
    let mut depmod = Command::new(busybox);
    shell::run(depmod.arg("depmod").arg("-b").arg(base).arg(release)).context("index the modules")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_the_header() {
        let mut head = vec![0; 0x400];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        head[0x300..0x30e].copy_from_slice(b"6.1.0-54-amd64");
        head[0x30e] = b' ';
        assert_eq!(release_of(&head).as_deref(), Some("6.1.0-54-amd64"));
        head[0x202] = 0;
        assert_eq!(release_of(&head), None);
        assert_eq!(release_of(b"short"), None);
    }
}
