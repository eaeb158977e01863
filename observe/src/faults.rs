//! Counts of what went wrong, in words.

use crate::summary::Faults;

impl Faults {
    /// The counts above 0, each with its noun.
    pub fn counted(&self) -> Vec<(u64, &'static str)> {
        let Self { n_left, n_evicted, n_reassigned, n_late, n_refused, n_resent, n_waits, n_restarts } = *self;
        let counts = [
            (n_left, "worker left", "workers left"),
            (n_evicted, "worker evicted", "workers evicted"),
            (n_reassigned, "task reassigned", "tasks reassigned"),
            (n_late, "task late", "tasks late"),
            (n_refused, "message refused", "messages refused"),
            (n_resent, "replica sent again", "replicas sent again"),
            (n_waits, "wait for workers", "waits for workers"),
            (n_restarts, "restart", "restarts"),
        ];
        let counts = counts.into_iter().filter(|(count, ..)| *count > 0);
        counts.map(|(count, one, many)| (count, if count == 1 { one } else { many })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_counted_in_words() {
        assert_eq!(Faults::default().counted(), []);
        let faults = Faults { n_left: 1, n_reassigned: 2, n_restarts: 1, ..Faults::default() };
        assert_eq!(faults.counted(), [(1, "worker left"), (2, "tasks reassigned"), (1, "restart")]);
    }
}
