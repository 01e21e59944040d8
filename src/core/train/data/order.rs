//! The order in which an epoch visits the examples. It must stay as it is: a resumed run continues in the middle of it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Keeps this stream apart from every other that starts from the run's seed.
const STREAM: [u8; 16] = *b"epoch order\0\0\0\0\0";

/// Every index below `examples` once, shuffled: the same for the same arguments on every machine, another for each seed and epoch.
pub fn epoch_order(examples: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
    key[16..].copy_from_slice(&STREAM);
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..examples).collect();
    for last in (1..examples).rev() {
        order.swap(last, below(&mut random, last as u64 + 1) as usize);
    }
    order
}

/// A number below `bound`, each equally likely. Our own, because a library may change how it draws from a range.
fn below(random: &mut ChaCha8Rng, bound: u64) -> u64 {
    // The largest multiple of the bound: numbers from there on would favour the small remainders.
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let number = random.next_u64();
        if number < limit {
            return number % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn an_order_has_every_index_once() {
        for examples in [0, 1, 2, 3, 100, 1001] {
            let mut order = epoch_order(examples, 7, 3);
            order.sort_unstable();
            assert_eq!(order, (0..examples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seed_and_epoch_decide_the_order() {
        let order = epoch_order(50, 1, 2);
        assert_eq!(order, epoch_order(50, 1, 2));
        assert_ne!(order, epoch_order(50, 1, 3));
        assert_ne!(order, epoch_order(50, 2, 2));
        assert_ne!(order, epoch_order(50, 2, 1));
        assert_ne!(order, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_stays_as_it_is() {
        // From a ChaCha8 written independently in Python.
        assert_eq!(epoch_order(8, 0, 0), [4, 1, 2, 5, 6, 7, 0, 3]);
        assert_eq!(epoch_order(8, 42, 1), [2, 7, 4, 6, 1, 5, 3, 0]);
    }

    #[test]
    fn every_order_is_equally_likely() {
        let mut counts: HashMap<Vec<usize>, usize> = HashMap::new();
        for epoch in 0..6000 {
            *counts.entry(epoch_order(3, 11, epoch)).or_default() += 1;
        }
        assert_eq!(counts.len(), 6);
        // Five standard deviations of a count are 144.
        assert!(counts.values().all(|count| count.abs_diff(1000) < 150), "{counts:?}");
    }
}
