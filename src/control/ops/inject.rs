//! `debug inject`: failures on demand, for people who want to see what their pool does about them.

use std::fmt::Write as _;

use crate::base::{Error, Result};
use crate::control::protocol::{Harm, InjectAction, Outcome};
use crate::control::service::{PoolService, outcome};
use crate::device::inject::{self, Kind, Rule};

/// Adds, lists or removes rules of a mounted pool.
pub fn inject(service: &PoolService, action: &InjectAction) -> Result<Outcome> {
    let board = &service.options.faults;
    if !board.is_enabled() {
        return Err(Error::Usage(
            "devices fail on demand only in pools made with `argosfs mkfs --debug-faults`".to_owned(),
        ));
    }
    if service.mounted.is_none() {
        return Err(Error::Usage("the pool is not mounted, so there is nobody to whom anything could fail".to_owned()));
    }
    match action {
        InjectAction::List => {}
        InjectAction::Clear => board.clear(),
        InjectAction::Add { device, harm, on, start, length, one_in, count } => board.add(Rule {
            device: name_of(service, device)?,
            harm: match harm {
                Harm::Error => inject::Harm::Fail,
                Harm::Corrupt => inject::Harm::Corrupt,
                Harm::DelayMs(milliseconds) => inject::Harm::Delay(*milliseconds),
            },
            kind: match on.as_deref() {
                None | Some("any") => None,
                Some("read") => Some(Kind::Read),
                Some("write") => Some(Kind::Write),
                Some("flush") => Some(Kind::Flush),
                Some(other) => return Err(Error::Usage(format!("{other} is none of read, write, flush, any"))),
            },
            start: *start,
            length: *length,
            one_in: *one_in,
            left: *count,
        }),
    }
    let rules = board.list();
    let mut text = String::new();
    for rule in &rules {
        let kind = rule.kind.map_or_else(|| "any".to_owned(), |kind| format!("{kind:?}").to_lowercase());
        let left = rule.left.map_or_else(|| "no end".to_owned(), |left| format!("{left} left"));
        let _ = writeln!(
            text,
            "{}: {:?} on {kind} of {}+{}, one in {}, {left}",
            rule.device, rule.harm, rule.start, rule.length, rule.one_in
        );
    }
    if rules.is_empty() {
        text.push_str("no device is made to fail");
    }
    outcome(0, &serde_json::json!({ "rules": rules.len() }), text)
}

/// The name of a present member, which is given by its number or by its path.
fn name_of(service: &PoolService, text: &str) -> Result<String> {
    let state = service.pool.state();
    let meant = |member: &&crate::pool::Member| member.name() == text || member.id.to_string() == text;
    let member = state.present().find(meant);
    member.map(crate::pool::Member::name).ok_or_else(|| Error::Usage(format!("no device {text} is present")))
}
