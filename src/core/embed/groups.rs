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
}
