//! The sampler against a reference that sorts everything and computes in f64, and against its own promises.

use super::*;

/// A stream of numbers for test data, apart from the sampler's own.
struct Numbers(u64);

impl Numbers {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1u64 << 31) as f64
    }

    fn normal(&mut self, deviation: f64) -> f32 {
        ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0) as f32 * deviation as f32
    }

    fn logits(&mut self, length: usize, deviation: f64) -> Vec<f32> {
        (0..length).map(|_| self.normal(deviation)).collect()
    }

    fn ids(&mut self, length: usize, vocabulary: usize) -> Vec<u32> {
        (0..length).map(|_| (self.uniform() * vocabulary as f64) as u32).collect()
    }
}

/// The distribution by the textbook: a full sort at each filter, everything in f64.
fn reference(sampling: &Sampling, logits: &[f32], history: History<'_>) -> Vec<f64> {
    let mut scores: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for (id, score) in scores.iter_mut().enumerate() {
        let count = |ids: &[u32]| ids.iter().filter(|&&other| other as usize == id).count();
        let generated = count(history.generated);
        if let Some(penalty) = sampling.repetition_penalty.filter(|_| count(history.prompt) + generated > 0) {
            *score = if *score < 0.0 { *score * f64::from(penalty) } else { *score / f64::from(penalty) };
        }
        *score -= f64::from(sampling.frequency_penalty.unwrap_or(0.0)) * generated as f64;
        *score -= if generated > 0 { f64::from(sampling.presence_penalty.unwrap_or(0.0)) } else { 0.0 };
        *score /= f64::from(sampling.temperature);
    }
    let probabilities = |scores: &[f64]| -> Vec<f64> {
        let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|x| (x - peak).exp()).sum();
        scores.iter().map(|x| (x - peak).exp() / sum).collect()
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    for &id in order.iter().skip(sampling.top_k.unwrap_or(usize::MAX)) {
        scores[id] = f64::NEG_INFINITY;
    }
    if let Some(top_p) = sampling.top_p.filter(|&p| p < 1.0) {
        let before_filter = probabilities(&scores);
        let mut mass = 0.0;
        for &id in &order {
            if mass >= f64::from(top_p) {
                scores[id] = f64::NEG_INFINITY;
            }
            mass += before_filter[id];
        }
    }
    if let Some(min_p) = sampling.min_p {
        let before_filter = probabilities(&scores);
        let floor = f64::from(min_p) * before_filter[order[0]];
        for (score, probability) in scores.iter_mut().zip(before_filter) {
            *score = if probability < floor { f64::NEG_INFINITY } else { *score };
        }
    }
    probabilities(&scores)
}

fn distribution(sampling: &Sampling, logits: &[f32], history: History<'_>) -> Vec<f64> {
    let mut sampler = Sampler::new(sampling).unwrap();
    let row = if sampler.penalise(logits, history).unwrap() { sampler.penalised.clone() } else { logits.to_vec() };
    let mut candidates = Candidates::default();
    let peak = candidates.look(&row).unwrap();
    let (chosen, mass) = candidates.of(&row, peak, sampling);
    sampler.distribute(chosen, peak, mass);
    let sum: f64 = sampler.block_sums.iter().sum();
    let mut all = vec![0.0; row.len()];
    sampler.weights.iter().enumerate().for_each(|(at, &weight)| all[chosen.id(at)] = f64::from(weight) / sum);
    all
}

/// Every product of these values, 1,440 in all.
fn every_combination() -> Vec<Sampling> {
    let mut all = Vec::new();
    for temperature in [0.3, 1.0, 1.7] {
        for top_k in [None, Some(1), Some(20), Some(700), Some(100_000)] {
            for top_p in [None, Some(1e-6), Some(0.5), Some(0.97)] {
                for min_p in [None, Some(0.05), Some(1.0)] {
                    for repetition_penalty in [None, Some(1.3)] {
                        for presence_penalty in [None, Some(0.8)] {
                            for frequency_penalty in [None, Some(-0.4)] {
                                let penalties = Sampling { repetition_penalty, presence_penalty, ..Sampling::greedy() };
                                all.push(Sampling { temperature, top_k, top_p, min_p, frequency_penalty, ..penalties });
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_combination_has_the_distribution_of_a_full_sort() {
    let mut numbers = Numbers(1);
    for (case, sampling) in every_combination().into_iter().enumerate() {
        let vocabulary = [3, 50, 1500][case % 3];
        let logits = numbers.logits(vocabulary, [0.1, 2.0, 6.0][case / 3 % 3]);
        let (prompt, generated) = (numbers.ids(9, vocabulary), numbers.ids(30, vocabulary));
        let history = History { prompt: &prompt, generated: &generated };
        let expected = reference(&sampling, &logits, history);
        for (id, (ours, theirs)) in distribution(&sampling, &logits, history).into_iter().zip(expected).enumerate() {
            // f32 has no weight below e^-87 of the peak.
            assert!(ours > 0.0 || theirs < 1e-37, "case {case}, token {id}: {theirs} is excluded; {sampling:?}");
            assert!(theirs > 0.0 || ours == 0.0, "case {case}, token {id}: {ours} is not excluded; {sampling:?}");
            assert!(
                (ours - theirs).abs() < 3e-5 * theirs + 1e-30,
                "case {case}, token {id}: {ours} {theirs}; {sampling:?}"
            );
        }
    }
}

#[test]
fn a_large_vocabulary_has_the_distribution_of_a_full_sort() {
    let mut numbers = Numbers(2);
    // The last row lies wholly in one bucket, but for its peak.
    let mut narrow: Vec<f32> = (0..151_936).map(|_| -8.0 - numbers.uniform() as f32 * 0.1).collect();
    narrow[77] = 0.0;
    for logits in [numbers.logits(151_936, 2.5), numbers.logits(151_936, 0.2), narrow] {
        for (top_k, top_p) in [(None, Some(0.9)), (Some(40), Some(0.8)), (Some(60_000), None), (None, Some(0.01))] {
            let sampling = Sampling { temperature: 0.9, top_k, top_p, ..Sampling::greedy() };
            let expected = reference(&sampling, &logits, History::default());
            let ours = distribution(&sampling, &logits, History::default());
            // Sums of 10^5 weights round differently, which may move the edge of the nucleus by a token.
            let differing = ours.iter().zip(&expected).filter(|(a, b)| (**a > 0.0) != (**b > 0.0)).count();
            assert!(differing <= usize::from(top_k.is_none()), "{differing} tokens differ with {sampling:?}");
            let distance: f64 = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum();
            assert!(distance < 1e-4, "{distance} with {sampling:?}");
        }
    }
}

#[test]
fn tokens_come_as_often_as_they_are_probable() {
    let logits = Numbers(3).logits(40, 1.0);
    let sampling = Sampling { temperature: 0.8, top_k: Some(25), top_p: Some(0.95), seed: 9, ..Sampling::greedy() };
    let expected = reference(&sampling, &logits, History::default());
    let mut sampler = Sampler::new(&sampling).unwrap();
    let draws = 20_000;
    let mut counts = vec![0u32; logits.len()];
    for _ in 0..draws {
        counts[sampler.next(&logits, History::default()).unwrap().id as usize] += 1;
    }
    let mut chi_square = 0.0;
    let mut possible = 0;
    for (&count, &probability) in counts.iter().zip(&expected) {
        if probability == 0.0 {
            assert_eq!(count, 0);
        } else {
            let mean = probability * f64::from(draws);
            chi_square += (f64::from(count) - mean).powi(2) / mean;
            possible += 1;
        }
    }
    // Mean d and variance 2d; five deviations above.
    let freedom = f64::from(possible - 1);
    assert!(
        chi_square < freedom + 5.0 * (2.0 * freedom).sqrt(),
        "chi-square {chi_square} at {freedom} degrees of freedom"
    );
}

#[test]
fn draws_reach_every_block_of_a_long_row() {
    let mut logits = vec![f32::NEG_INFINITY; 5000];
    let possible = [0, 1023, 1024, 3000, 4999];
    possible.iter().for_each(|&id| logits[id] = 1.0);
    let mut sampler = Sampler::new(&Sampling { temperature: 1.0, ..Sampling::greedy() }).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        seen.insert(sampler.next(&logits, History::default()).unwrap().id as usize);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), possible);
}

#[test]
fn a_draw_at_the_very_end_takes_the_last_possible_token() {
    let mut sampler = Sampler::new(&Sampling { temperature: 1.0, ..Sampling::greedy() }).unwrap();
    sampler.distribute(Chosen::all(&[0.0, 0.0, f32::NEG_INFINITY]), 0.0, None);
    // Larger sums than the weights bear out, as rounding could leave them.
    sampler.block_sums = vec![1e9];
    assert_eq!(sampler.draw(), 1);
}

fn twenty(sampling: &Sampling) -> Vec<u32> {
    let mut numbers = Numbers(4);
    let mut sampler = Sampler::new(sampling).unwrap();
    let prompt = [0, 1, 2, 3, 4, 5];
    let mut generated = Vec::new();
    for _ in 0..20 {
        let logits = numbers.logits(12, 1.5);
        let choice = sampler.next(&logits, History { prompt: &prompt, generated: &generated }).unwrap();
        generated.push(choice.id);
    }
    generated
}

#[test]
fn every_option_makes_a_difference() {
    let base = Sampling { temperature: 1.0, seed: 5, ..Sampling::greedy() };
    let tokens = twenty(&base);
    assert_eq!(tokens, twenty(&base), "the same seed gives the same tokens");
    for changed in [
        Sampling { temperature: 0.0, ..base.clone() },
        Sampling { temperature: 3.0, ..base.clone() },
        Sampling { top_k: Some(2), ..base.clone() },
        Sampling { top_p: Some(0.4), ..base.clone() },
        Sampling { min_p: Some(0.5), ..base.clone() },
        Sampling { repetition_penalty: Some(2.0), ..base.clone() },
        Sampling { presence_penalty: Some(2.0), ..base.clone() },
        Sampling { frequency_penalty: Some(2.0), ..base.clone() },
        Sampling { seed: 6, ..base.clone() },
    ] {
        assert_ne!(tokens, twenty(&changed), "{changed:?}");
    }
}

#[test]
fn the_stream_of_a_seed_does_not_change() {
    // ChaCha8 computed apart: key 42 in little-endian, words paired to u64, their upper 53 bits as a fraction of 1000 equal tokens.
    let flat = Sampling { temperature: 1.0, seed: 42, ..Sampling::greedy() };
    let mut sampler = Sampler::new(&flat).unwrap();
    let tokens: Vec<u32> = (0..8).map(|_| sampler.next(&[0.0; 1000], History::default()).unwrap().id).collect();
    assert_eq!(tokens, [348, 285, 493, 367, 825, 67, 489, 266]);
}

#[test]
fn greedy_takes_the_lowest_id_among_equals_and_so_does_every_filter_to_one() {
    let logits = [-1.0, 2.0, 0.5, 2.0, 2.0];
    for sampling in [
        Sampling::greedy(),
        Sampling { temperature: 1.0, top_k: Some(1), ..Sampling::greedy() },
        Sampling { temperature: 50.0, top_p: Some(1e-9), ..Sampling::greedy() },
        Sampling { temperature: 1.0, top_k: Some(3), top_p: Some(0.3), ..Sampling::greedy() },
    ] {
        let mut sampler = Sampler::new(&sampling).unwrap();
        for _ in 0..20 {
            assert_eq!(sampler.next(&logits, History::default()).unwrap().id, 1, "{sampling:?}");
        }
    }
    assert_eq!(Sampler::new(&Sampling::greedy()).unwrap().next(&[-0.0, 0.0], History::default()).unwrap().id, 0);
}

#[test]
fn top_k_keeps_exactly_k_among_equals() {
    for zero in [0.0, -0.0] {
        let mut logits = vec![0.0; 300];
        logits[200] = zero;
        let kept = distribution(
            &Sampling { temperature: 1.0, top_k: Some(7), ..Sampling::greedy() },
            &logits,
            History::default(),
        );
        let expected = vec![1.0 / 7.0; 7];
        assert_eq!(kept[..7], expected);
        assert!(kept[7..].iter().all(|&probability| probability == 0.0));
    }
}

#[test]
fn penalties_look_at_their_part_of_the_history() {
    let logits = [1.0, 0.9, 0.8];
    let after = |sampling: &Sampling, prompt: &[u32], generated: &[u32]| {
        Sampler::new(sampling).unwrap().next(&logits, History { prompt, generated }).unwrap().id
    };
    let repetition = Sampling { repetition_penalty: Some(1.5), ..Sampling::greedy() };
    assert_eq!(after(&repetition, &[0, 0], &[]), 1);
    assert_eq!(after(&repetition, &[0], &[1, 0]), 2);
    let presence = Sampling { presence_penalty: Some(0.15), ..Sampling::greedy() };
    assert_eq!(after(&presence, &[0], &[]), 0);
    assert_eq!(after(&presence, &[], &[0, 0, 0, 0, 0, 0, 0]), 1);
    assert_eq!(after(&presence, &[], &[0, 0, 0, 0, 0, 0, 0, 1]), 0);
    let frequency = Sampling { frequency_penalty: Some(0.06), ..Sampling::greedy() };
    assert_eq!(after(&frequency, &[0, 0], &[0]), 0);
    assert_eq!(after(&frequency, &[], &[0, 0]), 1);
}

#[test]
fn a_penalty_is_forgotten_by_the_next_row() {
    let sampling = Sampling { repetition_penalty: Some(9.0), presence_penalty: Some(1.0), ..Sampling::greedy() };
    let mut sampler = Sampler::new(&sampling).unwrap();
    assert_eq!(sampler.next(&[1.0, 0.9], History { prompt: &[0], generated: &[0] }).unwrap().id, 1);
    assert_eq!(sampler.next(&[1.0, 0.9], History { prompt: &[1], generated: &[1] }).unwrap().id, 0);
    assert!(matches!(
        sampler.next(&[1.0, 0.9], History { prompt: &[0, 2], generated: &[] }),
        Err(Error::UnknownToken { id: 2, vocabulary: 2 })
    ));
    assert_eq!(sampler.next(&[1.0, 0.9], History::default()).unwrap().id, 0);
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let logits = [2.0f32.ln(), 5.0f32.ln(), 3.0f32.ln(), f32::NEG_INFINITY];
    let sampling = Sampling { temperature: 0.1, top_k: Some(1), presence_penalty: Some(9.0), ..Sampling::greedy() };
    let choice = Sampler::new(&sampling).unwrap().next(&logits, History { prompt: &[], generated: &[1] }).unwrap();
    assert_eq!(choice.id, 2);
    assert!((choice.logprob - 0.3f32.ln()).abs() < 1e-6);
    let top = top_logprobs(&logits, 2).unwrap();
    assert_eq!(top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 2]);
    assert!((top[0].1 - 0.5f32.ln()).abs() < 1e-6 && (top[1].1 - choice.logprob).abs() == 0.0);
    assert_eq!(top_logprobs(&logits, 99).unwrap().len(), 3, "the impossible token is left out");
    assert_eq!(top_logprobs(&logits, 0).unwrap(), []);
    assert_eq!(top_logprobs(&[1.0; 5], 3).unwrap().iter().map(|top| top.0).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn logits_that_are_no_numbers_are_an_error_whatever_the_options() {
    let drawn = Sampling { temperature: 1.0, top_k: Some(2), top_p: Some(0.9), ..Sampling::greedy() };
    for sampling in [Sampling::greedy(), drawn] {
        let mut sampler = Sampler::new(&sampling).unwrap();
        for bad in [vec![], vec![f32::NAN, 1.0], vec![1.0, f32::INFINITY], vec![f32::NEG_INFINITY; 3]] {
            assert!(matches!(sampler.next(&bad, History::default()), Err(Error::NotFinite { .. })), "{bad:?}");
            assert!(top_logprobs(&bad, 1).is_err());
        }
        assert_eq!(sampler.next(&[f32::NEG_INFINITY, -3.0], History::default()).unwrap().id, 1);
    }
}

#[test]
fn extreme_logits_and_options_still_choose_a_possible_token() {
    let rows =
        [vec![f32::MAX, f32::MIN, 0.0], vec![f32::MIN; 3], vec![f32::MAX; 3], vec![1e-45, -1e-45, 0.0], vec![7.0]];
    for logits in rows {
        for temperature in [0.0, f32::from_bits(1), 100.0] {
            for repetition_penalty in [None, Some(100.0), Some(f32::from_bits(1))] {
                for top_k in [None, Some(1), Some(usize::MAX)] {
                    for top_p in [None, Some(f32::from_bits(1)), Some(1.0)] {
                        let penalties = Sampling {
                            presence_penalty: Some(-100.0),
                            frequency_penalty: Some(100.0),
                            seed: 1,
                            ..Sampling::greedy()
                        };
                        let sampling =
                            Sampling { temperature, repetition_penalty, top_k, top_p, min_p: Some(1.0), ..penalties };
                        let history = History { prompt: &[0], generated: &[0, 0] };
                        let choice = Sampler::new(&sampling).unwrap().next(&logits, history).unwrap();
                        assert!(
                            (choice.id as usize) < logits.len() && choice.logprob <= 0.0,
                            "{logits:?} {sampling:?} {choice:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn options_out_of_bounds_are_refused_by_name() {
    let greedy = Sampling::greedy;
    let mut bad = vec![("top_k", Sampling { top_k: Some(0), ..greedy() })];
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1000.0, 1000.0] {
        bad.push(("temperature", Sampling { temperature: value, ..greedy() }));
        bad.push(("top_p", Sampling { top_p: Some(value), ..greedy() }));
        bad.push(("min_p", Sampling { min_p: Some(value), ..greedy() }));
        bad.push(("repetition_penalty", Sampling { repetition_penalty: Some(value), ..greedy() }));
        bad.push(("presence_penalty", Sampling { presence_penalty: Some(value), ..greedy() }));
        bad.push(("frequency_penalty", Sampling { frequency_penalty: Some(value), ..greedy() }));
    }
    bad.push(("temperature", Sampling { temperature: -0.1, ..greedy() }));
    bad.push(("top_p", Sampling { top_p: Some(0.0), ..greedy() }));
    bad.push(("repetition_penalty", Sampling { repetition_penalty: Some(0.0), ..greedy() }));
    for (option, sampling) in bad {
        let Err(Error::OutOfBounds { name, bounds, .. }) = Sampler::new(&sampling).map(|_| ()) else {
            panic!("{sampling:?} passed");
        };
        assert_eq!(name, option);
        assert!(!bounds.is_empty());
    }
    assert!(Sampling { min_p: Some(0.0), top_p: Some(1.0), temperature: 100.0, ..greedy() }.validate().is_ok());
}
