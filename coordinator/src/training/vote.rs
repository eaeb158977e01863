//! What counts when several have computed one task. Its result is a pure function, so that votes on it have to agree bit for
//! bit; where they do not, the greater number of identities is right, and where that is not enough, the coordinator computes
//! the task itself.
//!
//! What the coordinator finds is the truth for votes of its own compute class. Votes of another one may differ in bits and be
//! right all the same: they have to be near.

use std::collections::BTreeSet;

use engine::shard::ShardResult;

use super::roster::{Identity, Profile, WorkerId};

/// How far a result of another compute class may be from the coordinator's own, as a share of that: hundreds of times what
/// backends differ by, rounding to bf16 included.
const NEAR: f64 = 0.05;

/// What a worker made of a task.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Numbers, every one finite. A batch has no gradient.
    Finite(ShardResult),
    /// NaN or infinity, and where.
    NotFinite(&'static str),
}

impl Answer {
    /// The vector of its gradient, if it is finite.
    pub fn into_gradient(self) -> Option<Vec<f32>> {
        match self {
            Self::Finite(result) => Some(result.gradient_sum),
            Self::NotFinite(_) => None,
        }
    }
}

/// An answer, and whose it is.
#[derive(Clone, Debug)]
pub struct Vote {
    /// Who gave it.
    pub worker_id: WorkerId,
    /// What that worker is.
    pub profile: Profile,
    /// What it gave.
    pub answer: Answer,
    /// Euclidean norm of the gradient, if it is finite.
    pub gradient_norm: f64,
}

/// All that is known of a task.
#[derive(Clone, Copy, Debug)]
pub struct Ballot<'a> {
    /// What workers made of it.
    pub votes: &'a [Vote],
    /// What the coordinator made of it.
    pub own: Option<&'a Answer>,
    /// Its compute class.
    pub own_class: &'a str,
    /// Identities whose votes have to agree.
    pub n_wanted: usize,
    /// Whether more votes may come.
    pub may_hear_more: bool,
}

/// What the votes on a task come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoteOutcome {
    /// More votes are to come.
    Open,
    /// One of them counts.
    Settled {
        /// Which.
        by: Winner,
        /// Workers whose vote is wrong.
        wrong: Vec<WorkerId>,
        /// Identities whose vote it is in every bit, the coordinator's own among them.
        n_agreeing: usize,
    },
    /// The parameters are such that no finite numbers come out.
    NotFinite(&'static str),
    /// The coordinator has to compute it: the votes cannot show who is right, or the run would end on the workers' word.
    Unclear,
}

/// Whose result counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// That of the vote at this index.
    Vote(usize),
    /// The coordinator's.
    Coordinator,
}

impl Ballot<'_> {
    /// What they come to.
    pub fn tally(&self) -> VoteOutcome {
        match self.own {
            Some(Answer::NotFinite(what)) => VoteOutcome::NotFinite(what),
            Some(Answer::Finite(own)) => self.tally_by(own),
            None => self.tally_alone(),
        }
    }

    /// Without the coordinator's.
    fn tally_alone(&self) -> VoteOutcome {
        let answers = (0..self.votes.len()).filter_map(|nth| Some((nth, finite(&self.votes[nth])?)));
        let counted = answers.map(|(nth, result)| (nth, self.n_agreeing(result)));
        // The first one among equals.
        let best = counted.rev().max_by_key(|&(_, n_agreeing)| n_agreeing);
        let not_finite = self.votes.iter().filter(|vote| finite(vote).is_none());
        match best {
            Some((right, n_agreeing)) if n_agreeing >= self.n_wanted => {
                let is_wrong = |vote: &Vote| !is_same_vote(&self.votes[right], vote);
                VoteOutcome::Settled { by: Winner::Vote(right), wrong: self.workers(is_wrong), n_agreeing }
            }
            _ if n_identities(not_finite) > 1 => VoteOutcome::Unclear,
            _ if self.may_hear_more || self.votes.is_empty() => VoteOutcome::Open,
            _ => VoteOutcome::Unclear,
        }
    }

    /// By what the coordinator found.
    fn tally_by(&self, own: &ShardResult) -> VoteOutcome {
        let is_exact = |vote: &Vote| vote.profile.compute_class == self.own_class;
        let is_right = |vote: &Vote| {
            finite(vote).is_some_and(|result| if is_exact(vote) { is_same(result, own) } else { is_near(result, own) })
        };
        let wrong = self.workers(|vote| !is_right(vote));
        let mut right = (0..self.votes.len()).filter(|&nth| is_right(&self.votes[nth]));
        let exact = right.clone().find(|&nth| is_exact(&self.votes[nth]));
        if let Some(exact) = exact {
            return VoteOutcome::Settled { by: Winner::Vote(exact), wrong, n_agreeing: 1 + self.n_agreeing(own) };
        }
        // If several are near and differ, it is unknown which one has the bits of its class.
        let near = right.next().filter(|&first| right.all(|nth| is_same_vote(&self.votes[first], &self.votes[nth])));
        match near.and_then(|nth| Some((nth, finite(&self.votes[nth])?))) {
            Some((nth, result)) => {
                VoteOutcome::Settled { by: Winner::Vote(nth), wrong, n_agreeing: self.n_agreeing(result) }
            }
            None => VoteOutcome::Settled { by: Winner::Coordinator, wrong, n_agreeing: 1 },
        }
    }

    fn workers(&self, which: impl Fn(&Vote) -> bool) -> Vec<WorkerId> {
        self.votes.iter().filter(|vote| which(vote)).map(|vote| vote.worker_id).collect()
    }

    /// Identities whose vote a result is.
    fn n_agreeing(&self, result: &ShardResult) -> usize {
        n_identities(self.votes.iter().filter(|other| finite(other).is_some_and(|other| is_same(result, other))))
    }
}

fn n_identities<'a>(votes: impl Iterator<Item = &'a Vote>) -> usize {
    votes.map(|vote| &vote.profile.identity).collect::<BTreeSet<&Identity>>().len()
}

fn finite(vote: &Vote) -> Option<&ShardResult> {
    match &vote.answer {
        Answer::Finite(result) => Some(result),
        Answer::NotFinite(_) => None,
    }
}

/// Whether both votes are finite and equal in every bit.
fn is_same_vote(one: &Vote, other: &Vote) -> bool {
    finite(one).zip(finite(other)).is_some_and(|(one, other)| is_same(one, other))
}

/// Whether both are equal in every bit.
fn is_same(one: &ShardResult, other: &ShardResult) -> bool {
    let [sums, other_sums] = [one, other].map(|result| {
        let sums = result.sums;
        (sums.loss_sum.to_bits(), sums.counts, sums.n_samples)
    });
    let gradients = one.gradient_sum.iter().zip(&other.gradient_sum);
    sums == other_sums
        && one.gradient_sum.len() == other.gradient_sum.len()
        && gradients.fold(true, |is_same, (one, other)| is_same & (one.to_bits() == other.to_bits()))
}

/// Whether a result may be that of the same task on another device.
fn is_near(found: &ShardResult, own: &ShardResult) -> bool {
    let square_sum = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let pairs = found.gradient_sum.iter().zip(&own.gradient_sum);
    let distance = square_sum(&mut pairs.map(|(found, own)| f64::from(*found) - f64::from(*own))).sqrt();
    let norm = square_sum(&mut own.gradient_sum.iter().copied().map(f64::from)).sqrt();
    let loss_distance = (found.sums.loss_sum - own.sums.loss_sum).abs();
    found.gradient_sum.len() == own.gradient_sum.len()
        && found.sums.n_samples == own.sums.n_samples
        && distance <= NEAR * norm
        && loss_distance <= NEAR * own.sums.loss_sum
}

#[cfg(test)]
mod tests {
    use engine::sums::Sums;

    use super::*;

    fn answer(word: &str) -> Answer {
        match word.parse() {
            Ok(value) => Answer::Finite(ShardResult { gradient_sum: vec![value], sums: Sums::default() }),
            Err(_) => Answer::NotFinite("gradient"),
        }
    }

    /// Votes by workers 0, 1, …, each of an identity of its own, or of one that stands before it as in `a:3`: a number is a
    /// gradient, a dash one that is not finite; `~` is before those of another compute class than the coordinator's, whose
    /// own is behind the bar, if it is there.
    fn check(votes: &str, n_wanted: usize, may_hear_more: bool, expected: &str) {
        let (votes, own) =
            votes.split_once('|').map_or((votes, None), |(votes, own)| (votes, Some(answer(own.trim()))));
        let vote = |(worker_id, word): (u64, &str)| {
            let (identity, word) =
                word.split_once(':').map_or((worker_id.to_string(), word), |(a, b)| (a.to_owned(), b));
            let compute_class = if word.starts_with('~') { "other" } else { "own" }.to_owned();
            let profile = Profile { identity: Identity::new(identity), compute_class, ..Profile::default() };
            let answer = answer(word.trim_start_matches('~'));
            Vote { worker_id: WorkerId(worker_id), profile, answer, gradient_norm: 0.0 }
        };
        let votes: Vec<Vote> = (0..).zip(votes.split_whitespace()).map(vote).collect();
        let ballot = Ballot { votes: &votes, own: own.as_ref(), own_class: "own", n_wanted, may_hear_more };
        let found = match ballot.tally() {
            VoteOutcome::Open => "open".to_owned(),
            VoteOutcome::Settled { by, wrong, n_agreeing } => {
                let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
                let by = if let Winner::Vote(right) = by { right.to_string() } else { "own".to_owned() };
                format!("{by} with {n_agreeing} against {}", wrong.join(" ")).trim_end().to_owned()
            }
            VoteOutcome::NotFinite(what) => format!("no finite {what}"),
            VoteOutcome::Unclear => "unclear".to_owned(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn result_needs_required_number_of_agreeing_identities() {
        check("", 2, true, "open");
        check("", 2, false, "open");
        check("3", 1, true, "0 with 1 against");
        check("3", 2, true, "open");
        check("3", 2, false, "unclear");
        check("3 3", 2, true, "0 with 2 against");
        check("3 4", 2, true, "open");
        check("3 4", 2, false, "unclear");
        check("3 4 4", 2, true, "1 with 2 against 0");
        check("3 4 3", 2, false, "0 with 2 against 1");
        check("3 4 5", 2, true, "open");
        check("3 4 5 4", 2, true, "1 with 2 against 0 2");
        check("3 -", 2, true, "open");
        check("3 - 3", 2, true, "0 with 2 against 1");
        check("0 -0", 2, false, "unclear");
    }

    #[test]
    fn votes_of_one_identity_count_once() {
        check("a:3 a:3", 2, true, "open");
        check("a:3 a:3", 2, false, "unclear");
        check("a:3 a:3 4", 2, false, "unclear");
        check("a:3 a:4 3", 2, true, "0 with 2 against 1");
        check("a:- a:-", 2, true, "open");
    }

    #[test]
    fn divergence_needs_non_finite_coordinator_result() {
        check("-", 2, true, "open");
        check("-", 2, false, "unclear");
        check("- -", 2, true, "unclear");
        check("- - 3", 2, true, "unclear");
        check("- | -", 2, false, "no finite gradient");
        check("3 | -", 2, false, "no finite gradient");
    }

    #[test]
    fn coordinator_result_decides_bitwise_in_same_compute_class() {
        check("- - | 3", 2, false, "own with 1 against 0 1");
        check("3 | 3", 2, false, "0 with 2 against");
        check("4 3 | 3", 2, true, "1 with 2 against 0");
        check("4 4 | 3", 2, true, "own with 1 against 0 1");
        check("3.0001 | 3", 2, true, "own with 1 against 0");
        check("| 3", 1, true, "own with 1 against");
    }

    #[test]
    fn other_compute_class_vote_must_be_near_coordinator_result() {
        check("~3.0001 | 3", 2, false, "0 with 1 against");
        check("~4 | 3", 2, false, "own with 1 against 0");
        check("~- | 3", 2, false, "own with 1 against 0");
        check("~- ~3.0001 | 3", 2, false, "1 with 1 against 0");
        check("~3.0001 ~3.0001 ~9 | 3", 2, false, "0 with 2 against 2");
        check("~3.0001 ~3.0002 | 3", 2, false, "own with 1 against");
        check("~3.0001 3 | 3", 2, false, "1 with 2 against");
    }
}
