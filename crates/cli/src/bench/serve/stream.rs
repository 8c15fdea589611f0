//! A streamed answer: server-sent events, each stamped when its bytes came.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::client;

/// A line that is longer is no event of a model's.
const LINE_BYTES: usize = 4 << 20;

/// Bytes as they come, in events as they were sent.
#[derive(Default)]
pub struct Lines {
    /// A line's beginning.
    rest: Vec<u8>,
}

impl Lines {
    /// Gives `take` what stands behind each `data:` whose line has ended.
    ///
    /// # Errors
    /// Those of `take`, or a line doesn't end.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            let (line, after) = (&bytes[..end], &bytes[end + 1..]);
            bytes = after;
            if self.rest.is_empty() {
                data(line).map_or(Ok(()), &mut take)?;
            } else {
                self.rest.extend_from_slice(line);
                let line = std::mem::take(&mut self.rest);
                data(&line).map_or(Ok(()), &mut take)?;
            }
        }
        self.rest.extend_from_slice(bytes);
        match self.rest.len() > LINE_BYTES {
            true => Err(format!("a line of the answer has more than {LINE_BYTES} bytes")),
            false => Ok(()),
        }
    }
}

/// What a line of an event says, without the blanks around it. Comments and other fields say nothing.
fn data(line: &[u8]) -> Option<&[u8]> {
    Some(line.strip_prefix(b"data:")?.trim_ascii())
}

/// What is looked at of an event.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    /// Of /v1/completions.
    text: Option<String>,
    /// Of /v1/chat/completions.
    delta: Option<Delta>,
    token_ids: Option<Vec<IgnoredAny>>,
    finish_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

#[derive(Clone, Copy, Deserialize)]
struct Usage {
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
}

impl Choice {
    /// Whether it brings tokens. In /v1/completions also one without text does, unless it is the end: some tokens have none.
    fn has_tokens(&self) -> bool {
        let is_said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_ids = self.token_ids.as_ref().is_some_and(|ids| !ids.is_empty());
        has_ids
            || match (&self.delta, &self.text) {
                (Some(delta), _) => {
                    let said = [&delta.content, &delta.reasoning_content, &delta.reasoning];
                    said.into_iter().any(is_said)
                        || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
                }
                (None, Some(text)) => !text.is_empty() || self.finish_reason.is_none(),
                (None, None) => false,
            }
    }
}

/// What was heard of an answer so far.
pub struct Heard {
    sent: Instant,
    first: Option<Instant>,
    /// When tokens came last.
    last: Instant,
    itls: Vec<Duration>,
    /// When the last choice came, with tokens or with the reason for the end.
    end: Option<Instant>,
    has_finished: bool,
    usage: Option<Usage>,
}

/// A whole answer's times and counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// From sending to the first tokens.
    pub ttft: Duration,
    /// Between one chunk with tokens and the next.
    pub itls: Vec<Duration>,
    /// From sending to the end.
    pub e2el: Duration,
    /// What the server says, or else what was sent, if that is known.
    pub prompt_tokens: Option<usize>,
    /// What the server says, or else how many chunks had tokens.
    pub output_tokens: usize,
}

impl Heard {
    /// Of a request that was sent at this time.
    pub fn new(sent: Instant) -> Self {
        Heard { sent, first: None, last: sent, itls: Vec::new(), end: None, has_finished: false, usage: None }
    }

    /// Hears one event, which came at `now`.
    ///
    /// # Errors
    /// It is an error, or nothing that can be read. One line.
    pub fn event(&mut self, data: &[u8], now: Instant) -> Result<(), String> {
        if data == b"[DONE]" {
            self.has_finished = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|e| {
            format!("an event that cannot be read ({e}): {}", client::shown(&String::from_utf8_lossy(data)))
        })?;
        if chunk.error.is_some() {
            return Err(client::message(data));
        }
        self.usage = chunk.usage.or(self.usage);
        self.has_finished |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
        if !chunk.choices.is_empty() {
            self.end = Some(now);
        }
        if chunk.choices.iter().any(Choice::has_tokens) {
            match self.first {
                Some(_) => self.itls.push(now - self.last),
                None => self.first = Some(now),
            }
            self.last = now;
        }
        Ok(())
    }

    /// The whole, once nothing more comes.
    ///
    /// # Errors
    /// The end is missing.
    pub fn ended(self, sent_tokens: Option<usize>) -> Result<Timing, String> {
        if !self.has_finished {
            return Err("the stream broke off before its end".into());
        }
        let Some(end) = self.end else { return Err("the stream has no answer in it".into()) };
        let chunks = self.first.map_or(0, |_| self.itls.len() + 1);
        Ok(Timing {
            // An answer whose tokens have no text begins with its end.
            ttft: self.first.unwrap_or(end) - self.sent,
            itls: self.itls,
            e2el: end - self.sent,
            prompt_tokens: self.usage.and_then(|usage| usage.prompt_tokens).or(sent_tokens),
            output_tokens: self.usage.and_then(|usage| usage.completion_tokens).unwrap_or(chunks),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard of events that come 10 ms apart.
    fn heard(events: &[&str]) -> Result<Timing, String> {
        let sent = Instant::now();
        let mut heard = Heard::new(sent);
        for (i, event) in events.iter().enumerate() {
            heard.event(event.as_bytes(), sent + ms(10 * (i as u64 + 1)))?;
        }
        heard.ended(Some(5))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn timing(ttft: u64, itls: &[u64], e2el: u64, prompt: usize, output: usize) -> Timing {
        let itls = itls.iter().map(|&itl| ms(itl)).collect();
        Timing { ttft: ms(ttft), itls, e2el: ms(e2el), prompt_tokens: Some(prompt), output_tokens: output }
    }

    #[test]
    fn events_are_the_same_however_their_bytes_are_cut() {
        let bytes =
            b": hi\r\n\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:{\"b\":\"\xc3\xa9\"}\n\ndata: [DONE]\n\n";
        for cut in 1..bytes.len() {
            let (mut lines, mut events) = (Lines::default(), Vec::new());
            for part in bytes.chunks(cut) {
                let take = |data: &[u8]| {
                    events.push(String::from_utf8(data.to_vec()).unwrap());
                    Ok(())
                };
                lines.feed(part, take).unwrap();
            }
            assert_eq!(events, ["{\"a\":1}", "{\"b\":\"é\"}", "[DONE]"], "cut every {cut} bytes");
        }
    }

    #[test]
    fn completions_are_timed_by_their_chunks_and_counted_by_usage() {
        let found = heard(&[
            r#"{"choices":[{"text":"a","finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"text":"b c","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"","finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":6,"completion_tokens":4,"total_tokens":10}}"#,
            "[DONE]",
        ]);
        assert_eq!(found.unwrap(), timing(10, &[10, 10], 40, 6, 4));
    }

    #[test]
    fn chats_begin_with_content_not_with_a_role() {
        let found = heard(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        ]);
        assert_eq!(found.unwrap(), timing(20, &[10, 10], 50, 5, 3));
    }

    #[test]
    fn tokens_without_text_are_heard_by_their_ids_or_by_the_end() {
        let ids = heard(&[r#"{"choices":[{"text":"","token_ids":[1],"finish_reason":"length"}]}"#]);
        assert_eq!(ids.unwrap(), timing(10, &[], 10, 5, 1));
        let usage = r#"{"choices":[],"usage":{"completion_tokens":3}}"#;
        let end = heard(&["{\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}", usage]);
        assert_eq!(end.unwrap(), timing(10, &[], 10, 5, 3));
    }

    #[test]
    fn errors_and_broken_streams_are_no_answers() {
        let told = |events: &[&str]| heard(events).unwrap_err();
        assert_eq!(told(&[r#"{"error":{"message":"out of memory"}}"#]), "out of memory");
        assert!(told(&[r#"{"choices":[{"text":"a","finish_reason":null}]}"#]).contains("broke off"));
        assert!(told(&[]).contains("broke off"));
        assert!(told(&["[DONE]"]).contains("no answer"));
        assert!(told(&["{\"choices\":5}"]).contains("cannot be read"));
        let endless = Lines::default().feed(&vec![b'x'; LINE_BYTES + 1], |_| Ok(()));
        assert!(endless.unwrap_err().contains("more than"));
    }
}
