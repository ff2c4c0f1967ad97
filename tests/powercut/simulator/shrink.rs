//! Making a failing sequence short, and printing it as code for a regression test.

use argosfs::fs::op::Op;

use super::machine::Act;

/// Drops acts as long as `fails`: halves first, single ones last (delta debugging).
pub fn shrink(acts: &[Act], mut fails: impl FnMut(&[Act]) -> bool) -> Vec<Act> {
    let mut left = acts.to_vec();
    let mut piece = left.len().div_ceil(2);
    while piece > 0 {
        let before = left.len();
        let mut at = 0;
        while at < left.len() {
            let end = left.len().min(at + piece);
            let fewer = [&left[..at], &left[end..]].concat();
            if fails(&fewer) {
                left = fewer;
            } else {
                at = end;
            }
        }
        // Dropping one may let another go that was tried before.
        if piece > 1 {
            piece /= 2;
        } else if left.len() == before {
            break;
        }
    }
    left
}

/// The sequence as an expression.
pub fn as_code(acts: &[Act]) -> String {
    let lines: Vec<String> = acts.iter().map(|act| format!("    {},\n", code(act))).collect();
    format!("[\n{}]", lines.concat())
}

fn code(act: &Act) -> String {
    let Act::Op(op) = act else { return format!("Act::{act:?}") };
    let mode = match op {
        Op::Rename { .. } => "mode: RenameMode::",
        Op::Fallocate { .. } => "mode: FallocateMode::",
        _ => "mode: ",
    };
    let text = format!("{op:?}").replace("mode: ", mode).replace("kind: ", "kind: FileType::");
    let text = text.replace(" set: ", " set: XattrSet::").replace("whence: ", "whence: Whence::");
    let text = text.replace("time: Some(", "time: Some(SetTime::");
    format!("Act::Op(Op::{text})")
}
