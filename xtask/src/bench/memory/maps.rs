//! The kernel maps that a process holds.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const MIB: f64 = 1024.0 * 1024.0;

/// Found once: a process under load has too many other descriptors to go through all of them again and again.
pub struct Maps {
    /// A file below `/proc/PID/fdinfo` a map.
    files: Vec<PathBuf>,
}

// === impl Maps ===

impl Maps {
    /// # Errors
    /// The process is gone.
    pub fn of(pid: i32) -> Result<Self> {
        Self::in_folder(Path::new(&format!("/proc/{pid}/fdinfo")))
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let mut of_map = BTreeMap::new();
        for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let file = entry?.path();
            if let Some((id, _)) = read(&file) {
                of_map.insert(id, file);
            }
        }
        Ok(Self {
            files: of_map.into_values().collect(),
        })
    }

    /// What the kernel charges for them now, each once.
    pub fn mib(&self) -> f64 {
        let maps: BTreeMap<u64, u64> = self.files.iter().filter_map(|file| read(file)).collect();
        maps.values().sum::<u64>() as f64 / MIB
    }
}

/// Number and bytes of the map behind a descriptor. It may be closed meanwhile, or be of something else.
fn read(file: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(file).ok()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    Some((field("map_id:")?, field("memlock:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_map_counts_once_and_other_descriptors_not_at_all() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("weft-bench-maps-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let map = |id: u32, mib: u32| format!("pos:\t0\nmap_type:\t1\nmemlock:\t{}\nmap_id:\t{id}\n", mib << 20);
        for (name, text) in [
            ("3", map(7, 2)),
            ("4", map(7, 2)),
            ("5", map(8, 1)),
            ("6", "pos:\t0\nflags:\t02\n".to_owned()),
            ("7", "prog_type:\t9\nprog_id:\t7\nmemlock:\t4096\n".to_owned()),
        ] {
            fs::write(folder.join(name), text)?;
        }
        let maps = Maps::in_folder(&folder)?;
        assert_eq!(maps.mib(), 3.0);
        // A map may grow, and a descriptor may be closed.
        fs::write(folder.join("5"), map(8, 4))?;
        assert_eq!(maps.mib(), 6.0);
        fs::remove_file(folder.join("5"))?;
        assert_eq!(maps.mib(), 2.0);
        fs::remove_dir_all(&folder)?;
        Ok(())
    }
}
