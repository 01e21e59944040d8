//! Whether the bytes that arrived are the bytes the hub has: an etag is the SHA-256 of a large file, and git's SHA-1 of a small one.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A file larger than this is no LFS pointer.
/// Source: the Git LFS specification.
const MAX_POINTER_BYTES: usize = 1024;
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// Hashes a file while it arrives.
pub(crate) struct Verifier {
    hash: Hash,
    /// The first bytes, which tell a pointer.
    head: Vec<u8>,
}

enum Hash {
    Sha256(Sha256),
    Blob(Sha1),
    /// An etag that is no hash, as mirrors may send: only the size can be checked.
    Unknown,
}

impl Verifier {
    /// For a file of `size` bytes with this etag.
    pub fn new(etag: &str, size: u64) -> Self {
        let is_hash = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hash = match etag.len() {
            64 if is_hash => Hash::Sha256(Sha256::new()),
            40 if is_hash => Hash::Blob(Sha1::new_with_prefix(format!("blob {size}\0"))),
            _ => Hash::Unknown,
        };
        Self { hash, head: Vec::new() }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Blob(hash) => hash.update(bytes),
            Hash::Unknown => {}
        }
        let room = (MAX_POINTER_BYTES + 1).saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Whether all that came is Git's stand-in for a large file.
    pub fn is_pointer(&self) -> bool {
        self.head.len() <= MAX_POINTER_BYTES && self.head.starts_with(POINTER)
    }

    /// The hash in hexadecimal digits, if the etag is one.
    pub fn finish(self) -> Option<String> {
        let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self.hash {
            Hash::Sha256(hash) => Some(digits(&hash.finalize())),
            Hash::Blob(hash) => Some(digits(&hash.finalize())),
            Hash::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(etag: &str, bytes: &[u8]) -> Option<String> {
        let mut verifier = Verifier::new(etag, bytes.len() as u64);
        bytes.chunks(3).for_each(|bytes| verifier.update(bytes));
        verifier.finish()
    }

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`
        let (git, sha256) = (
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        );
        assert_eq!(hash(git, b"hello\n").as_deref(), Some(git));
        assert_eq!(hash(sha256, b"hello\n").as_deref(), Some(sha256));
        assert_eq!(hash("a-mirror", b"hello\n"), None);
    }

    #[test]
    fn a_pointer_is_small_and_says_so() {
        let is_pointer = |bytes: &[u8]| {
            let mut verifier = Verifier::new("", bytes.len() as u64);
            bytes.chunks(100).for_each(|bytes| verifier.update(bytes));
            verifier.is_pointer()
        };
        let pointer = [POINTER, b"\noid sha256:0\nsize 1\n"].concat();
        assert!(is_pointer(&pointer));
        assert!(!is_pointer(&[&pointer[..], &[b' '; 1024]].concat()));
        assert!(!is_pointer(b"{}"));
    }
}
