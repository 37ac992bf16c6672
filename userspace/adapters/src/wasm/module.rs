//! A module: checked and compiled once, for all plugins and workers.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use wasmtime::{ExternType, Module as Compiled};

use super::{
    abi::AbiVersion,
    calls,
    config::{Capabilities, PluginConfig},
    engine::engine,
    error::WasmError,
    known::known,
    plugin::Plugin,
    services::Services,
};
use crate::upstreams::Upstreams;

/// Largest module in bytes. Modules of Go are some megabytes.
pub const MAX_MODULE: usize = 64 << 20;

/// A compiled module. Clones share it.
#[derive(Clone)]
pub struct Module(Arc<Loaded>);

pub(super) struct Loaded {
    compiled: Compiled,
    pub digest: Digest,
    abi: AbiVersion,
}

/// SHA-256 of a module's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

// === impl Module ===

impl Module {
    /// Checks and compiles `bytes`: milliseconds to seconds, so never on a worker. What is in use, or was until recently, is
    /// not compiled again.
    ///
    /// # Errors
    /// It is no WebAssembly, no proxy-wasm module of a known version, imports what no proxy-wasm host has, or is larger
    /// than [`MAX_MODULE`].
    pub fn compile(bytes: &[u8]) -> Result<Self, WasmError> {
        if bytes.len() > MAX_MODULE {
            return Err(WasmError::TooLarge {
                bytes: bytes.len(),
                limit: MAX_MODULE,
            });
        }
        let digest = Digest::of(bytes);
        if let Some(loaded) = known().find(digest) {
            return Ok(Self(loaded));
        }
        let loaded = Arc::new(Loaded::new(bytes, digest)?);
        known().keep(&loaded);
        Ok(Self(loaded))
    }

    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    pub fn abi(&self) -> AbiVersion {
        self.0.abi
    }

    /// A plugin of this module. Starts nothing: see [`Plugin::canary`] and [`Plugin::prepare`].
    ///
    /// # Errors
    /// The module needs what the capabilities do not allow and that has no answer.
    pub fn plugin(
        &self,
        config: PluginConfig,
        services: &Services,
        upstreams: Arc<dyn Upstreams>,
    ) -> Result<Plugin, WasmError> {
        Plugin::new(self.clone(), config, services, upstreams)
    }

    pub(super) fn compiled(&self) -> &Compiled {
        &self.0.compiled
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module")
            .field("digest", &self.0.digest)
            .field("abi", &self.0.abi)
            .finish_non_exhaustive()
    }
}

// === impl Loaded ===

impl Loaded {
    pub fn new(bytes: &[u8], digest: Digest) -> Result<Self, WasmError> {
        let compiled = Compiled::from_binary(engine()?, bytes).map_err(|error| WasmError::Garbage {
            reason: format!("{error:#}"),
        })?;
        let exports = |version: &AbiVersion| {
            let marker = compiled.get_export(version.marker());
            matches!(marker, Some(ExternType::Func(_)))
        };
        let abi = AbiVersion::ALL.into_iter().find(exports).ok_or(WasmError::Abi)?;
        if !matches!(compiled.get_export("memory"), Some(ExternType::Memory(_))) {
            return Err(WasmError::Export {
                name: "memory",
                reason: "there is none, but the host has to reach it".into(),
            });
        }
        // Finds what cannot be linked before anything runs.
        calls::linker(&compiled, abi, &Capabilities::All)?
            .instantiate_pre(&compiled)
            .map_err(calls::link_error)?;
        Ok(Self { compiled, digest, abi })
    }

    /// Bytes of its machine code and what belongs to it.
    pub fn size(&self) -> usize {
        let image = self.compiled.image_range();
        image.end.addr() - image.start.addr()
    }
}

// === impl Digest ===

impl Digest {
    /// Of a module's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
