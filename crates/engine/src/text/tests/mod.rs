//! Promises of the text folder.

mod chat;
mod families;
mod limits;
mod random;
mod snippets;
mod stop;
mod stream;
mod tokenizer;
mod tokenizers_small;
