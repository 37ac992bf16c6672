//! The initramfs: loads the few modules without which the host's files cannot be seen, makes those files the root (below
//! an overlay in memory, so that nothing a test writes reaches the host), and starts the guest's side of xtask.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::shell;

/// What the initramfs itself needs, with all they depend on; everything later is loaded by the kernel on demand. One that
/// a kernel has built in, or does without, is not there.
const MODULES: &[&str] = &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// Mount tag of the host's files.
pub const HOST_TAG: &str = "host";

/// `newc`, the format of `usr/gen_init_cpio.c`: what a kernel unpacks.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inodes: u32,
}

/// Writes the initramfs of `kernel` to `file`.
///
/// `busybox` is a static one; `visible` are folders of the host that tests need although they may lie below /tmp or /run,
/// which the guest has of its own; `words` is the command line to start, with its arguments.
///
/// # Errors
/// A module cannot be read or unpacked, or `file` not be written.
pub fn write(kernel: &Kernel, busybox: &Path, visible: &[PathBuf], words: &[&Path], file: &Path) -> Result<()> {
    let mut cpio = Cpio::default();
    for dir in ["bin", "modules", "proc", "sys", "dev", "host", "memory", "root"] {
        cpio.add(dir, DIRECTORY, &[]);
    }
    let busybox = fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    cpio.add("bin/busybox", PROGRAM, &busybox);
    for (number, module) in modules(kernel)?.iter().enumerate() {
        let name = stem(module).context("a module without a name")?;
        cpio.add(&format!("modules/{number:02}-{name}.ko"), FILE, &unpacked(module)?);
    }
    cpio.add("init", PROGRAM, init(kernel, visible).as_bytes());
    cpio.add("start", PROGRAM, start(words).as_bytes());
    fs::write(file, cpio.finish()).with_context(|| format!("write {}", file.display()))
}

/// Runs as process 1 of the initramfs, by busybox.
fn init(kernel: &Kernel, visible: &[PathBuf]) -> String {
    let mut binds = String::new();
    for path in visible {
        let path = quoted(path);
        binds +=
            &format!("[ -e /root{path} ] || {{ $b mkdir -p /root{path}; $b mount --bind /host{path} /root{path}; }}\n");
    }
    if let Some(tree) = &kernel.modules {
        let (tree, release) = (quoted(tree), &kernel.release);
        binds += &format!(
            "$b mkdir -p /root/lib/modules/{release}; $b mount --bind /host{tree} /root/lib/modules/{release}\n"
        );
    }
    format!(
        "#!/bin/busybox sh
b=/bin/busybox
die() {{ $b echo \"initramfs: cannot $*\"; $b poweroff -f; }}
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
for module in /modules/*.ko; do $b insmod $module || $b echo \"initramfs: insmod $module failed\"; done
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=1048576 {HOST_TAG} /host || die mount the files of the host
$b mount -t tmpfs memory /memory
$b mkdir /memory/upper /memory/work
$b mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root || die make an overlay
for dir in proc sys dev; do $b mount --move /$dir /root/$dir; done
for dir in tmp run var/tmp; do $b mount -t tmpfs -o mode=1777 $dir /root/$dir; done
{binds}\
$b mkdir -p /root/dev/shm /root/dev/pts /root/run/guest
$b mount -t tmpfs shm /root/dev/shm; $b mount -t devpts devpts /root/dev/pts
$b mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
$b mount -t bpf bpf /root/sys/fs/bpf
$b cp /bin/busybox /root/run/guest/modprobe; $b cp /bin/busybox /root/run/guest/busybox; $b cp /start /root/run/guest/start
$b echo /run/guest/modprobe > /root/proc/sys/kernel/modprobe
exec $b switch_root /root /run/guest/busybox sh /run/guest/start
"
    )
}

/// Runs as process 1 in the host's files.
fn start(words: &[&Path]) -> String {
    let words = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    format!(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/run/guest/busybox ip link set lo up
{words}
/run/guest/busybox poweroff -f
"
    )
}

/// As one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// [`MODULES`] and what they depend on, each after what it needs.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let Some(tree) = &kernel.modules else {
        return Ok(Vec::new());
    };
    let file = tree.join("modules.dep");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    Ok(in_order(&text, MODULES)
        .into_iter()
        .map(|path| tree.join(path))
        .collect())
}

/// `kernel/a.ko: kernel/b.ko kernel/c.ko`: a needs b, which needs c.
fn in_order<'a>(dependencies: &'a str, wanted: &[&str]) -> Vec<&'a Path> {
    let mut found: Vec<&Path> = Vec::new();
    for name in wanted {
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(module, _)| stem(Path::new(module)).as_deref() == Some(*name));
        let Some((module, needs)) = line else { continue };
        for module in needs.split_whitespace().rev().chain([module]).map(Path::new) {
            if !found.contains(&module) {
                found.push(module);
            }
        }
    }
    found
}

/// `kernel/net/9p/9pnet-virtio.ko.xz` -> `9pnet_virtio`
fn stem(module: &Path) -> Option<String> {
    let name = module.file_name()?.to_str()?;
    Some(name.split('.').next()?.replace('-', "_"))
}

/// A module as the kernel takes it, whatever it is packed with.
fn unpacked(module: &Path) -> Result<Vec<u8>> {
    let unpacker = match module.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(module).with_context(|| format!("read {}", module.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{} is packed with something unknown", module.display()),
    };
    shell::bytes(Command::new(unpacker).arg("-dc").arg(module))
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

// === impl Cpio ===

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        // magic, inode, mode, uid, gid, links, mtime, size, device and its number twice, length of the name, checksum
        let size = content.len() as u32;
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dependencies = "kernel/net/9p/9pnet.ko.xz:\n\
                            kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/virtio.ko.xz\n\
                            kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs.ko.xz\n";
        let names: Vec<_> = in_order(dependencies, &["9pnet_virtio", "built_in", "9p"])
            .into_iter()
            .map(|module| stem(module).unwrap_or_default())
            .collect();
        assert_eq!(names, ["virtio", "9pnet", "9pnet_virtio", "netfs", "9p"]);
    }

    #[test]
    fn an_archive_is_padded_to_words_and_ends_with_its_trailer() {
        let mut cpio = Cpio::default();
        cpio.add("a", FILE, b"12345");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Header of 110 bytes, "a\0", then the content at the next word.
        assert_eq!(&bytes[112..117], b"12345");
        assert_eq!(&bytes[120..126], b"070701");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn a_path_is_one_word_of_the_shell() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
