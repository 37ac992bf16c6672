//! Puts the kernel programs into the crate: `target/bpf/weft.bpf.o`, which `cargo xtask build` makes.
//!
//! Without them the crate still builds (so that `cargo check` needs no kernel toolchain), and says at run time what to do.

use std::{env, fs, path::PathBuf};

fn main() {
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    let object = env::var_os("WEFT_BPF_OBJECT").map_or_else(|| workspace.join("target/bpf/weft.bpf.o"), PathBuf::from);
    println!("cargo::rerun-if-env-changed=WEFT_BPF_OBJECT");
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("weft.bpf.o");
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(&out, bytes).unwrap_or_else(|error| panic!("write {}: {error}", out.display()));
}
