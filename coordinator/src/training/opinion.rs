//! What counts when several workers have computed one task. They have to agree bit for bit, since a task's result is a pure
//! function; where they do not, the greater number is right.

use model::gradients::ShardResult;

use super::roster::{Profile, WorkerId};

/// What a worker made of a task.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Numbers, every one finite. A batch has no gradient.
    Finite(ShardResult),
    /// NaN or infinity, and where.
    NotFinite(&'static str),
}

/// An answer, and whose it is.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// Who gave it.
    pub worker_id: WorkerId,
    /// What that worker is.
    pub profile: Profile,
    /// What it gave.
    pub answer: Answer,
}

/// What the opinions on a task come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More are to be heard.
    Open,
    /// One of them counts.
    Settled {
        /// Its place among the opinions.
        right: usize,
        /// Workers whose opinion is another one.
        wrong: Vec<WorkerId>,
        /// Workers whose opinion it is.
        n_agreeing: usize,
    },
    /// The parameters are such that no finite numbers come out.
    NotFinite(&'static str),
    /// They differ, and nobody is there to say who is right.
    Disputed,
}

/// What the opinions on a task come to, of which `n_wanted` have to agree if so many can be had.
pub fn judge(opinions: &[Opinion], n_wanted: usize, may_hear_more: bool) -> Verdict {
    let n_like = |right: &usize| opinions.iter().filter(|other| is_same(&opinions[*right], other)).count();
    let finite: Vec<usize> = (0..opinions.len()).filter(|&nth| finite(&opinions[nth]).is_some()).collect();
    // The first one among equals.
    let best = finite.iter().copied().rev().max_by_key(n_like).map(|right| (right, n_like(&right)));
    let mut not_finite = opinions.iter().filter_map(|opinion| match opinion.answer {
        Answer::NotFinite(what) => Some(what),
        Answer::Finite(_) => None,
    });
    let settled = |right: usize, n_agreeing| {
        let differs = |other: &&Opinion| !is_same(&opinions[right], other);
        let wrong = opinions.iter().filter(differs).map(|other| other.worker_id).collect();
        Verdict::Settled { right, wrong, n_agreeing }
    };
    match (best, not_finite.next(), not_finite.next()) {
        (Some((right, n_agreeing)), _, _) if n_agreeing >= n_wanted => settled(right, n_agreeing),
        (_, Some(what), Some(_)) => Verdict::NotFinite(what),
        _ if may_hear_more => Verdict::Open,
        (Some((right, n_agreeing)), _, _) if n_agreeing == finite.len() => settled(right, n_agreeing),
        (Some(_), _, _) => Verdict::Disputed,
        (None, Some(what), None) => Verdict::NotFinite(what),
        (None, None, _) => Verdict::Open,
    }
}

fn finite(opinion: &Opinion) -> Option<&ShardResult> {
    match &opinion.answer {
        Answer::Finite(result) => Some(result),
        Answer::NotFinite(_) => None,
    }
}

/// Whether both are finite and equal in every bit.
fn is_same(one: &Opinion, other: &Opinion) -> bool {
    let (Some(one), Some(other)) = (finite(one), finite(other)) else { return false };
    let [sums, other_sums] = [one, other].map(|result| {
        let sums = result.sums;
        (sums.loss_sum.to_bits(), sums.correct_sum, sums.n_samples)
    });
    let gradients = one.gradient_sum.iter().zip(&other.gradient_sum);
    sums == other_sums
        && one.gradient_sum.len() == other.gradient_sum.len()
        && gradients.fold(true, |is_same, (one, other)| is_same & (one.to_bits() == other.to_bits()))
}

#[cfg(test)]
mod tests {
    use model::loss::LossSums;

    use super::*;

    /// Opinions by workers 0, 1, …: a number is a gradient, a dash one that is not finite.
    fn check(opinions: &str, n_wanted: usize, may_hear_more: bool, expected: &str) {
        let opinion = |(worker_id, word): (u64, &str)| Opinion {
            worker_id: WorkerId(worker_id),
            profile: Profile::default(),
            answer: match word.parse() {
                Ok(value) => Answer::Finite(ShardResult { gradient_sum: vec![1.0, value], sums: LossSums::default() }),
                Err(_) => Answer::NotFinite("gradient"),
            },
        };
        let opinions: Vec<Opinion> = (0..).zip(opinions.split_whitespace()).map(opinion).collect();
        let found = match judge(&opinions, n_wanted, may_hear_more) {
            Verdict::Open => "open".to_owned(),
            Verdict::Settled { right, wrong, n_agreeing } => {
                let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
                format!("{right} with {n_agreeing} against {}", wrong.join(" ")).trim_end().to_owned()
            }
            Verdict::NotFinite(what) => format!("no finite {what}"),
            Verdict::Disputed => "disputed".to_owned(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn one_finite_opinion_is_enough_where_nobody_asks_for_two() {
        check("", 1, true, "open");
        check("3", 1, true, "0 with 1 against");
        check("- 3", 1, true, "1 with 1 against 0");
    }

    #[test]
    fn what_is_not_finite_is_believed_of_two_or_of_the_last() {
        check("-", 1, true, "open");
        check("-", 1, false, "no finite gradient");
        check("- -", 1, true, "no finite gradient");
        check("3 - -", 2, true, "no finite gradient");
    }

    #[test]
    fn two_have_to_agree_where_they_are_asked_to() {
        check("3", 2, true, "open");
        check("3", 2, false, "0 with 1 against");
        check("3 3", 2, true, "0 with 2 against");
        check("3 4", 2, true, "open");
        check("3 4", 2, false, "disputed");
        check("3 4 4", 2, true, "1 with 2 against 0");
        check("3 4 3", 2, false, "0 with 2 against 1");
        check("3 4 5", 2, true, "open");
        check("3 4 5 4", 2, true, "1 with 2 against 0 2");
        check("3 -", 2, true, "open");
        check("3 -", 2, false, "0 with 1 against 1");
        check("0 -0", 2, false, "disputed");
    }
}
