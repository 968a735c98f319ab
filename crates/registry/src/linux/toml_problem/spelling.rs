//! Finds the known key that a misspelt one was probably meant to be.

/// The known key with the smallest edit distance, if it is close enough.
pub(super) fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = unknown.to_lowercase().replace('-', "_");
    let bound = (folded.chars().count() / 3).clamp(1, 4);
    known
        .iter()
        .map(|key| (distance(&folded, key, bound), *key))
        .filter(|(distance, _)| *distance <= bound)
        .min()
        .map(|(_, key)| key)
}

/// The edit distance in insertions, deletions, substitutions and swaps of adjacent letters (optimal
/// string alignment). Any number over `bound` if it exceeds `bound`.
fn distance(a: &str, b: &str, bound: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > bound {
        return bound + 1;
    }
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_counts_once_in_the_edit_distance() {
        assert_eq!(distance("enabeld", "enabled", 4), 1);
        assert_eq!(distance("kitten", "sitting", 4), 3);
        assert_eq!(distance("", "abc", 4), 3);
        assert!(distance("", "abcdef", 4) > 4);
    }
}
