//! What could not be obtained from Windows, with the command that helps.

use hvsock::Fix;
use hvsock_hyperv::Missing;

use crate::fix;
use crate::hint::Help;

/// The sentence for what is missing, with the command that helps.
pub fn text(missing: &Missing) -> String {
    match advice(missing) {
        Some(advice) => format!("{missing}; {advice}"),
        None => missing.to_string(),
    }
}

/// The command that helps, or another next step.
pub fn advice(missing: &Missing) -> Option<String> {
    Some(match missing {
        Missing::NotQueried => "`hvsock vm list` queries them".to_owned(),
        Missing::HyperV => {
            let (Help::Command(text) | Help::Sentence(text)) = fix::help(&Fix::EnableHyperV);
            text
        }
        Missing::TimedOut { service, .. } => format!("`Get-Service {service}` shows its state"),
        Missing::ComputeService { .. } => {
            "`wsl.exe -- wslinfo --vm-id` shows the id of WSL's".to_owned()
        }
        _ => return None,
    })
}
