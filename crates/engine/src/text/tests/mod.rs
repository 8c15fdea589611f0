//! Promises of the text folder.

mod chat;
mod conversations;
mod families;
mod guard;
mod limits;
mod random;
mod snippets;
mod stop;
mod stream;
mod tokenizer;
mod tokenizers_small;
