//! What is asked: prompts of a seed, or those of a file.

use super::random::Random;

/// What one request asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub content: Content,
    /// Tokens that the answer may have.
    pub output_tokens: usize,
}

/// A prompt as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text(String),
    Ids(Vec<u32>),
}

impl Content {
    /// Tokens, as far as they are known without a tokenizer.
    pub fn tokens(&self) -> Option<usize> {
        match self {
            Content::Text(_) => None,
            Content::Ids(ids) => Some(ids.len()),
        }
    }
}

/// What random prompts are made of.
#[derive(Clone, Copy, Debug)]
pub enum Alphabet {
    /// Token ids below this bound: a prompt has exactly as many tokens as was asked for.
    Ids { vocab_size: u32 },
    /// Common words, each of which is one token to most tokenizers.
    Words,
}

/// Ids below this are often special: the ends of texts and of turns, and bytes.
const FIRST_ID: u32 = 100;

/// Words that are one token, with the blank before them, in the tokenizers of Llama, Qwen, Gemma and GPT.
const WORDS: [&str; 48] = [
    "the", "of", "and", "to", "in", "is", "was", "for", "that", "on", "with", "he", "it", "as", "at", "by",
    "from", "they", "we", "say", "her", "she", "or", "an", "will", "my", "one", "all", "would", "there",
    "their", "what", "so", "up", "out", "if", "about", "who", "get", "which", "go", "when", "make", "can",
    "like", "time", "just", "know",
];

/// How many prompts there are of which kind.
#[derive(Clone, Copy, Debug)]
pub enum Dataset {
    /// Each with tokens of its own; lengths vary by the ratio to both sides.
    Random { input_len: usize, output_len: usize, range_ratio: f64 },
    /// The same one each time.
    Fixed { input_len: usize, output_len: usize },
    /// Few beginnings, each with many ends.
    SharedPrefix { num_prefixes: usize, prefix_len: usize, suffix_len: usize, output_len: usize },
}

/// Sequences of a seed: prompts have those from 0, and these are above all of them.
const PREFIXES: u64 = 1 << 61;
const ORDER: u64 = 1 << 62;

impl Dataset {
    /// The prompts of a seed. The first ones of many are as the first ones of few, but for the order of shared prefixes.
    pub fn prompts(&self, count: usize, seed: u64, alphabet: Alphabet) -> Vec<Prompt> {
        let random = |i: usize| Random::new(seed, i as u64);
        match *self {
            Dataset::Random { input_len, output_len, range_ratio } => {
                let prompt = |i| {
                    let mut random = random(i);
                    let input = around(&mut random, input_len, range_ratio);
                    let output_tokens = around(&mut random, output_len, range_ratio);
                    Prompt { content: alphabet.of(&mut [(&mut random, input)]), output_tokens }
                };
                (0..count).map(prompt).collect()
            }
            Dataset::Fixed { input_len, output_len } => {
                let content = alphabet.of(&mut [(&mut random(0), input_len)]);
                vec![Prompt { content, output_tokens: output_len }; count]
            }
            Dataset::SharedPrefix { num_prefixes, prefix_len, suffix_len, output_len } => {
                let mut prefixes: Vec<usize> = (0..count).map(|i| i % num_prefixes).collect();
                Random::new(seed, ORDER).shuffle(&mut prefixes);
                let prompt = |(i, prefix)| {
                    let prefix = (&mut Random::new(seed, PREFIXES + prefix as u64), prefix_len);
                    let content = alphabet.of(&mut [prefix, (&mut random(i), suffix_len)]);
                    Prompt { content, output_tokens: output_len }
                };
                prefixes.into_iter().enumerate().map(prompt).collect()
            }
        }
    }
}

/// A length from `length` less this fraction to as much more, and at least 1.
fn around(random: &mut Random, length: usize, ratio: f64) -> usize {
    let (least, most) = (length as f64 * (1.0 - ratio), length as f64 * (1.0 + ratio));
    random.between((least.floor() as usize).max(1), (most.ceil() as usize).max(1))
}

impl Alphabet {
    /// Parts of so many tokens each, one after the other.
    fn of(self, parts: &mut [(&mut Random, usize)]) -> Content {
        let mut draw = |bound: usize| -> Vec<usize> {
            let of_part = |(random, tokens): &mut (&mut Random, usize)| -> Vec<usize> {
                (0..*tokens).map(|_| random.between(0, bound - 1)).collect()
            };
            parts.iter_mut().flat_map(of_part).collect()
        };
        match self {
            Alphabet::Ids { vocab_size } => {
                // A vocabulary that small has other special ids, or none.
                let first = if vocab_size >= 2 * FIRST_ID { FIRST_ID } else { 0 };
                let drawn = draw((vocab_size - first) as usize);
                Content::Ids(drawn.into_iter().map(|id| first + id as u32).collect())
            }
            Alphabet::Words => {
                let words: Vec<&str> = draw(WORDS.len()).into_iter().map(|i| WORDS[i]).collect();
                Content::Text(words.join(" "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: Alphabet = Alphabet::Ids { vocab_size: 1000 };

    fn ids(prompt: &Prompt) -> &[u32] {
        match &prompt.content {
            Content::Ids(ids) => ids,
            Content::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn random_prompts_are_a_function_of_the_seed() {
        let random = Dataset::Random { input_len: 16, output_len: 4, range_ratio: 0.0 };
        let prompts = random.prompts(20, 1, IDS);
        assert_eq!(prompts, random.prompts(20, 1, IDS));
        assert_eq!(prompts[..5], random.prompts(5, 1, IDS));
        assert_ne!(prompts, random.prompts(20, 2, IDS));
        assert!(prompts.iter().all(|p| ids(p).len() == 16 && p.output_tokens == 4));
        assert!(prompts.iter().flat_map(ids).all(|id| (100..1000).contains(id)));
        assert!((1..20).all(|i| prompts[i] != prompts[0]));
    }

    #[test]
    fn lengths_vary_by_the_ratio_and_never_to_nothing() {
        let random = Dataset::Random { input_len: 10, output_len: 1, range_ratio: 0.55 };
        let prompts = random.prompts(300, 0, IDS);
        let lengths = || prompts.iter().map(|p| ids(p).len());
        assert_eq!((lengths().min(), lengths().max()), (Some(4), Some(16)));
        let outputs = || prompts.iter().map(|p| p.output_tokens);
        assert_eq!((outputs().min(), outputs().max()), (Some(1), Some(2)));
    }

    #[test]
    fn a_fixed_prompt_is_the_same_each_time() {
        let prompts = Dataset::Fixed { input_len: 8, output_len: 2 }.prompts(3, 0, IDS);
        assert!(prompts.iter().all(|p| p == &prompts[0]) && ids(&prompts[0]).len() == 8);
    }

    #[test]
    fn prefixes_are_shared_evenly_and_suffixes_are_not() {
        let shared = Dataset::SharedPrefix { num_prefixes: 3, prefix_len: 8, suffix_len: 4, output_len: 2 };
        let prompts = shared.prompts(12, 0, IDS);
        let mut seen = std::collections::BTreeMap::new();
        prompts.iter().for_each(|p| *seen.entry(ids(p)[..8].to_vec()).or_insert(0) += 1);
        assert_eq!(seen.into_values().collect::<Vec<_>>(), [4, 4, 4]);
        let suffixes: std::collections::BTreeSet<_> = prompts.iter().map(|p| ids(p)[8..].to_vec()).collect();
        assert_eq!(suffixes.len(), 12);
    }

    #[test]
    fn words_are_as_many_as_tokens_were_asked_for() {
        let random = Dataset::Random { input_len: 16, output_len: 4, range_ratio: 0.0 };
        for prompt in random.prompts(3, 1, Alphabet::Words) {
            let Content::Text(text) = prompt.content else { panic!("text is wanted") };
            assert_eq!(text.split(' ').count(), 16);
        }
    }

    #[test]
    fn the_smallest_vocabulary_will_do() {
        let random = Dataset::Random { input_len: 8, output_len: 1, range_ratio: 0.0 };
        let prompts = random.prompts(1, 0, Alphabet::Ids { vocab_size: 1 });
        assert_eq!(ids(&prompts[0]), [0; 8]);
    }
}
