//! What can go wrong with a tokenizer, a chat template or a text.

use std::path::PathBuf;

/// An error of the text folder. Every message is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The folder of the model has no `tokenizer.json`.
    #[error("no tokenizer.json in {}; without one give token ids with --prompt-ids", dir.display())]
    MissingTokenizer {
        /// The model's folder.
        dir: PathBuf,
    },
    /// A file is there and cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file is larger than any real one.
    #[error("{name} has {bytes} bytes, more than the {bytes_max} allowed")]
    TooLarge {
        /// The file's name.
        name: String,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        bytes_max: u64,
    },
    /// A file is not what its name says.
    #[error("{name} is malformed: {reason}")]
    Malformed {
        /// The file's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer could not encode or decode.
    #[error("the tokenizer cannot {action} this: {reason}")]
    Tokenizer {
        /// `encode` or `decode`.
        action: &'static str,
        /// What the tokenizer said.
        reason: String,
    },
    /// The checkpoint has no chat template.
    #[error("this model has no chat template; give a plain prompt, or add a chat_template.jinja")]
    NoChatTemplate,
    /// The template does not compile.
    #[error("the chat template is malformed: {reason}")]
    TemplateSyntax {
        /// What is wrong, with the line.
        reason: String,
    },
    /// The template called `raise_exception`: it refuses these messages.
    #[error("the chat template refuses these messages: {message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// The template failed on these messages.
    #[error("the chat template failed: {reason}")]
    TemplateFailed {
        /// What is wrong, with the line.
        reason: String,
    },
    /// The template did more work than any real one does.
    #[error("the chat template was stopped: {reason}")]
    TemplateLimit {
        /// Which limit it met.
        reason: String,
    },
    /// A keyword argument that a caller cannot give to a template.
    #[error("the chat template cannot be given the argument {name:?}: {reason}")]
    TemplateArgument {
        /// The argument's name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
}

impl TextError {
    pub(super) fn malformed(name: &str, reason: impl ToString) -> Self {
        Self::Malformed { name: name.to_string(), reason: one_line(&reason.to_string()) }
    }
}

/// Libraries write errors over several lines; ours have one.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
