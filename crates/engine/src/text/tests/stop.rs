use super::random::Random;
use crate::text::{StopMatcher, Stopped};

/// Pushes pieces; gives back the text, and the stop string if one was found.
fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
    let mut matcher = StopMatcher::new(stops.iter().copied());
    let mut text = String::new();
    for piece in pieces {
        match matcher.push(piece) {
            Ok(more) => text += &more,
            Err(Stopped { text: more, stop }) => return (text + &more, Some(stop)),
        }
    }
    (text + &matcher.finish(), None)
}

fn stopped(text: &str, stop: &str) -> (String, Option<String>) {
    (text.to_string(), Some(stop.to_string()))
}

#[test]
fn a_stop_string_is_found_across_pieces() {
    assert_eq!(run(&["STOP"], &["one S", "T", "OP two"]), stopped("one ", "STOP"));
    assert_eq!(run(&["STOP"], &["one ST", "OSTOP"]), stopped("one STO", "STOP"));
    assert_eq!(run(&["aab"], &["aa", "a", "ab"]), stopped("aa", "aab"));
    assert_eq!(run(&["\n\n"], &["a\n", "\nb"]), stopped("a", "\n\n"));
    assert_eq!(run(&["ende\u{df}", "\u{1f600}"], &["das \u{1f600}"]), stopped("das ", "\u{1f600}"));
    assert_eq!(
        run(&["\u{4f60}\u{597d}"], &["x\u{4f60}", "\u{4f60}", "\u{597d}y"]),
        stopped("x\u{4f60}", "\u{4f60}\u{597d}")
    );
}

#[test]
fn the_first_to_begin_wins_and_then_the_longest() {
    assert_eq!(run(&["c", "ab"], &["xabc"]), stopped("x", "ab"));
    assert_eq!(run(&["ab", "abc"], &["xabcd"]), stopped("x", "abc"));
    assert_eq!(run(&["bc", "abcd"], &["abcd"]), stopped("", "abcd"));
    assert_eq!(run(&["ab", "abc"], &["xab", "c"]), stopped("x", "ab"), "a complete one is not passed over");
}

#[test]
fn only_what_can_become_a_stop_string_is_held_back() {
    let mut matcher = StopMatcher::new(["</s>", "User:"]);
    assert_eq!(matcher.push("a <"), Ok("a ".to_string()));
    assert_eq!(matcher.push("b"), Ok("<b".to_string()));
    assert_eq!(matcher.push(" Us"), Ok(" ".to_string()));
    assert_eq!(matcher.push("</"), Ok("Us".to_string()));
    assert_eq!(matcher.finish(), "</");
    assert_eq!(matcher.finish(), "");
    assert_eq!(StopMatcher::new([""; 0]).push("all of it"), Ok("all of it".to_string()));
}

#[test]
#[should_panic(expected = "a stop string is empty")]
fn an_empty_stop_string_is_the_callers_mistake() {
    StopMatcher::new([""]);
}

#[test]
fn pieces_of_any_size_give_what_searching_the_whole_gives() {
    let mut random = Random::new(7);
    let word = |random: &mut Random, len: usize| -> String {
        (0..len).map(|_| ['a', 'b', '\u{e4}', '\u{1f600}'][random.below(4)]).collect()
    };
    for _ in 0..20_000 {
        let stops: Vec<String> = (0..1 + random.below(3))
            .map(|_| {
                let len = 1 + random.below(4);
                word(&mut random, len)
            })
            .collect();
        let pieces: Vec<String> = (0..random.below(8))
            .map(|_| {
                let len = random.below(5);
                word(&mut random, len)
            })
            .collect();
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();

        // The obvious way: after each piece, search everything.
        let mut text = String::new();
        let mut expected = None;
        for piece in &pieces {
            text += piece;
            let found = stops.iter().filter_map(|stop| Some((text.find(stop)?, stop)));
            if let Some((start, stop)) =
                found.min_by_key(|(start, stop)| (*start, std::cmp::Reverse(stop.len())))
            {
                expected = Some(stop.to_string());
                text.truncate(start);
                break;
            }
        }
        assert_eq!(run(&stops, &pieces), (text, expected), "{stops:?} in {pieces:?}");
    }
}
