//! Where things are: the checkout, its build output, the tools kept below it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The checkout this xtask was built from.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's output folder: `CARGO_TARGET_DIR` where it is set, else `target`.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The binary `cargo xtask build` leaves behind.
pub fn weft() -> PathBuf {
    target().join("release/weft")
}

/// The load generator of the bench.
pub fn load() -> PathBuf {
    target().join("release/weft-load")
}

/// The policy server of the bench.
pub fn authz() -> PathBuf {
    target().join("release/weft-authz")
}

/// The relay of the bench.
pub fn relay() -> PathBuf {
    target().join("release/weft-relay")
}

/// The sender and receiver in bulk of the bench.
pub fn bulk() -> PathBuf {
    target().join("release/weft-bulk")
}

/// The gRPC server of the bench.
pub fn echo() -> PathBuf {
    target().join("release/weft-echo")
}

/// What `cargo xtask build --debug` leaves behind.
pub fn weft_debug() -> PathBuf {
    target().join("debug/weft")
}

/// The kernel object that goes into the binary. Always below the checkout, whatever `CARGO_TARGET_DIR` says, because
/// `weft-dataplane` embeds it from there.
pub fn bpf_object() -> PathBuf {
    root().join("target/bpf/weft.bpf.o")
}

/// What optimised builds of `weft` are told of its work, a file a compiler: `cargo xtask profile` makes them.
pub fn profiles() -> PathBuf {
    root().join("userspace/weft/profile")
}

/// What `cargo xtask profile` leaves behind.
pub fn profile_build() -> PathBuf {
    root().join("target/profile")
}

/// The filters, `NAME.wasm` each. Below the checkout, as the kernel object is: tests and examples name them so.
pub fn filters() -> PathBuf {
    root().join("target/wasm")
}

/// What compilers of the filters leave behind.
pub fn filters_build() -> PathBuf {
    root().join("target/wasm-build")
}

/// Kernels, initramfs and consoles of `cargo xtask vm-test`'s guests.
pub fn vm() -> PathBuf {
    root().join("target/vm")
}

/// `cargo install --root` of the tools this repository needs.
pub fn tools() -> PathBuf {
    root().join("target/tools")
}

/// First executable called `name` on `PATH`, in the system's administrator folders (which `PATH` of a plain user lacks),
/// in [`tools`], or among cargo's own.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .chain([tools().join("bin")])
        .chain(home.map(|home| home.join("bin")))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
