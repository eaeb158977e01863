//! Commands for people to type, which begin as this program was started. In words of a POSIX shell.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The words that started this program, up to its flags: `target/release/coordinator`, or `./classifier coordinator`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation(Vec<OsString>);

impl Invocation {
    /// Of a program, and the command that it was given, if it has several.
    pub fn new(words: impl IntoIterator<Item = OsString>) -> Self {
        Self(words.into_iter().collect())
    }

    /// As it stands in the program's help.
    pub fn name(&self) -> String {
        let file = self.0.first().map(PathBuf::from).unwrap_or_default();
        let file = file.file_name().map(OsStr::to_owned);
        let words: Vec<OsString> = file.into_iter().chain(self.0.iter().skip(1).cloned()).collect();
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }

    /// That of a worker: the same program's command `worker`, or the program of that name beside this one.
    #[must_use]
    pub fn of_worker(&self) -> Self {
        match &self.0[..] {
            [file] => {
                let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
                Self(vec![Path::new(file).with_file_name(name.replace("coordinator", "worker")).into()])
            }
            words => Self(words.iter().take(1).cloned().chain(["worker".into()]).collect()),
        }
    }

    /// The command with these arguments.
    pub fn command(&self, arguments: impl IntoIterator<Item = OsString>) -> String {
        let words: Vec<String> = self.0.iter().cloned().chain(arguments).map(|word| quoted(&word)).collect();
        words.join(" ")
    }

    /// What shows the page of a run again.
    pub fn show_command(&self, folder: &Path) -> String {
        self.command(["--show".into(), folder.into()])
    }
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &OsStr) -> String {
    let quoted = shlex::bytes::try_quote(word.as_encoded_bytes());
    String::from_utf8_lossy(&quoted.expect("no word of a command has a NUL")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation(words: &[&str]) -> Invocation {
        Invocation::new(words.iter().map(OsString::from))
    }

    #[test]
    fn worker_is_command_of_same_program_or_program_beside() {
        let check = |words: &[&str], name: &str, expected: &str| {
            let invocation = invocation(words);
            let command = invocation.of_worker().command(["--version".into()]);
            assert_eq!((invocation.name().as_str(), command.as_str()), (name, expected));
        };
        check(&["coordinator"], "coordinator", "worker --version");
        check(&["target/release/coordinator"], "coordinator", "target/release/worker --version");
        check(&["./classifier", "coordinator"], "classifier coordinator", "./classifier worker --version");
    }

    #[test]
    fn words_with_spaces_and_quotes_are_quoted() {
        let check = |folder: &str, expected: &str| {
            assert_eq!(invocation(&["./my tool", "coordinator"]).show_command(Path::new(folder)), expected);
        };
        check("runs/denoising-001", "'./my tool' coordinator --show runs/denoising-001");
        check("my runs/1", "'./my tool' coordinator --show 'my runs/1'");
        let words = ["./it's", "coordinator", "--show", r#"a "b" $HOME\c"#];
        let command = invocation(&words[..2]).show_command(Path::new(words[3]));
        assert_eq!(shlex::split(&command).expect("words"), words);
    }
}
