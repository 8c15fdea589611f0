//! What is computed agrees with Hugging Face in float32.

mod common;

use common::Golden;
use engine::EngineOptions;
use tensor::DType;

#[test]
fn log_probabilities_and_greedy_tokens_are_hugging_faces_on_every_architecture() {
    let options = EngineOptions { dtype: Some(DType::F32), threads_per_rank: Some(1), ..Default::default() };
    let mut failures = Vec::new();
    for golden in Golden::all() {
        let mut engine = golden.engine(&options);
        let ours = engine.score(&golden.prompt).unwrap();
        assert_eq!(ours.len(), golden.logprobs.len(), "{}", golden.name);
        let worst = ours
            .iter()
            .zip(&golden.logprobs)
            .map(|(ours, theirs)| match (ours, theirs) {
                (Some(ours), Some(theirs)) => (f64::from(*ours) - theirs).abs(),
                (None, None) => 0.0,
                _ => f64::INFINITY,
            })
            .fold(0.0, f64::max);
        let tokens = engine.generate(&[golden.request(golden.greedy.len())], &mut |_, _| false).unwrap();
        println!("{:28} {worst:.1e} {}", golden.name, tokens[0].token_ids == golden.greedy);
        if worst > 1e-4 || worst.is_nan() || tokens[0].token_ids != golden.greedy {
            failures.push(format!("{}: off by {worst:.1e}, {:?}", golden.name, tokens[0].token_ids));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
