//! Where random streams come from: a seed and the names of what it is for. Every stream is our own, never a backend's global one.

use sha2::{Digest, Sha256};

/// 64 bits that follow from the parts.
pub(crate) fn key(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |key, &byte| key << 8 | u64::from(byte))
}
