//! Which texts pass through the model together: those of like length, within a budget of tokens.

/// The indices of all lengths in groups, the longest first, so that a budget that is too large shows at once. A group's lengths sum to
/// `budget` at most, unless one alone is above it.
pub(super) fn groups(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Stable: equal lengths stay in their order, and the same texts always give the same groups.
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for index in order {
        match groups.last_mut() {
            Some(group) if tokens + lengths[index] <= budget => group.push(index),
            _ => {
                groups.push(vec![index]);
                tokens = 0;
            }
        }
        tokens += lengths[index];
    }
    groups
}

/// Tokens below which a part is not worth a thread of its own: each part reads all weights.
const PART_TOKENS: usize = 32;

/// Tokens of a part at most, about: what an op leaves for the next is then still in the caches of the core that takes it up.
const CACHED_TOKENS: usize = 320;

/// A group in parts of about as many tokens, for workers that each take a part from beginning to end; a single one is given all.
pub(super) fn parts(lengths: &[usize], group: &[usize], workers: usize) -> Vec<Vec<usize>> {
    let total: usize = group.iter().map(|&index| lengths[index]).sum();
    // Each worker is given as many.
    let wanted = if workers > 1 { total.div_ceil(CACHED_TOKENS).next_multiple_of(workers) } else { 1 };
    let count = (total / PART_TOKENS).min(wanted).min(group.len()).max(1);
    let mut parts = vec![Vec::new(); count];
    let mut tokens = vec![0; count];
    // The longest come first, each to the part that has least.
    for &index in group {
        let least = (0..count).min_by_key(|&part| tokens[part]).unwrap_or(0);
        parts[least].push(index);
        tokens[least] += lengths[index];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_one_group_and_none_is_over_budget() {
        let lengths: Vec<usize> = (0..1000).map(|i| (i * 37) % 251 + 1).collect();
        for budget in [1, 250, 251, 4096] {
            let groups = groups(&lengths, budget);
            let mut seen: Vec<usize> = groups.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..1000).collect::<Vec<_>>());
            let sum = |group: &Vec<usize>| group.iter().map(|&index| lengths[index]).sum::<usize>();
            assert!(groups.iter().all(|group| group.len() == 1 || sum(group) <= budget));
        }
        assert!(groups(&[], 5).is_empty());
        assert_eq!(groups(&[1, 3, 2, 3], 6), [vec![1, 3], vec![2, 0]]);
    }

    #[test]
    fn parts_hold_the_group_once_and_about_as_many_tokens_each() {
        let lengths: Vec<usize> = (0..100).map(|i| (i * 37) % 251 + 4).collect();
        let group = groups(&lengths, usize::MAX).remove(0);
        let parts = parts(&lengths, &group, 4);
        let tokens = |part: &Vec<usize>| part.iter().map(|&index| lengths[index]).sum::<usize>();
        let (least, most) = (parts.iter().map(tokens).min().unwrap(), parts.iter().map(tokens).max().unwrap());
        assert!(parts.len().is_multiple_of(4) && most - least <= 4 + 251, "{least} to {most}");
        assert!(most <= CACHED_TOKENS + 251, "{most}");
        assert_eq!(super::parts(&lengths, &group, 1).len(), 1);
        assert_eq!(super::parts(&[100; 6], &[0, 1, 2, 3, 4, 5], 4), [vec![0, 4], vec![1, 5], vec![2], vec![3]]);
        let mut seen = parts.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert_eq!(super::parts(&[20, 20], &[0, 1], 8), [[0, 1]]);
        assert_eq!(super::parts(&[20], &[0], 8), [[0]]);
    }
}
