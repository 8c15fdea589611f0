//! Progress bars on a terminal, nothing on a pipe.

use std::time::Duration;

use checkpoint::hub::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar of bytes; hidden where stderr is no terminal.
pub fn bytes_bar(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.expect("the template is right"));
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar for each file that is downloaded.
#[derive(Default)]
pub struct DownloadBar {
    bar: Option<ProgressBar>,
}

impl Progress for DownloadBar {
    fn start(&mut self, file: &str, bytes: u64) {
        self.bar = Some(bytes_bar(file, bytes));
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
