//! `schema/export.v1.schema.json` against what is really exported, with as much of JSON Schema as it uses.

use serde_json::Value;

const SCHEMA: &str = include_str!("../../../schema/export.v1.schema.json");

/// What is wrong with `value`, at which place.
fn violations(root: &Value, schema: &Value, value: &Value, at: &str, out: &mut Vec<String>) {
    let Some(rules) = schema.as_object() else { return };
    for (rule, wanted) in rules {
        let fine = match rule.as_str() {
            "$ref" => {
                let path =
                    wanted.as_str().and_then(|path| path.strip_prefix('#')).expect("a reference in the document");
                violations(root, root.pointer(path).expect("a definition"), value, at, out);
                true
            }
            "type" => match wanted.as_str() {
                Some("object") => value.is_object(),
                Some("array") => value.is_array(),
                Some("string") => value.is_string(),
                Some("integer") => value.is_u64() || value.is_i64(),
                Some("boolean") => value.is_boolean(),
                Some("null") => value.is_null(),
                other => panic!("unknown type {other:?}"),
            },
            "const" => value == wanted,
            "enum" => wanted.as_array().expect("a list").contains(value),
            "minimum" => value.as_i64().is_none_or(|number| number >= wanted.as_i64().expect("a number")),
            "maximum" => value.as_u64().is_none_or(|number| number <= wanted.as_u64().expect("a number")),
            "required" => {
                for key in wanted.as_array().expect("a list") {
                    if value.get(key.as_str().expect("text")).is_none() {
                        out.push(format!("{at}: {key} is missing"));
                    }
                }
                true
            }
            "properties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    match wanted.get(key) {
                        Some(schema) => violations(root, schema, inner, &format!("{at}.{key}"), out),
                        None if rules.get("additionalProperties") == Some(&Value::Bool(false)) => {
                            out.push(format!("{at}: {key} is unknown"));
                        }
                        None => {}
                    }
                }
                true
            }
            "items" => {
                for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
                    violations(root, wanted, inner, &format!("{at}[{index}]"), out);
                }
                true
            }
            "minItems" => value.as_array().is_none_or(|list| list.len() as u64 >= wanted.as_u64().expect("a number")),
            "maxItems" => value.as_array().is_none_or(|list| list.len() as u64 <= wanted.as_u64().expect("a number")),
            "pattern" => match wanted.as_str() {
                Some("^[0-9a-f]*$") => value
                    .as_str()
                    .is_none_or(|text| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))),
                Some("^[A-Za-z0-9+/]*=*$") => value.as_str().is_none_or(|text| {
                    text.trim_end_matches('=').bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
                }),
                other => panic!("unknown pattern {other:?}"),
            },
            "oneOf" => {
                let fitting = wanted.as_array().expect("a list").iter().filter(|schema| {
                    let mut inner = Vec::new();
                    violations(root, schema, value, at, &mut inner);
                    inner.is_empty()
                });
                fitting.count() == 1
            }
            "$schema" | "$id" | "title" | "description" | "$defs" | "additionalProperties" => true,
            other => panic!("the schema uses {other}, which this test does not check"),
        };
        if !fine {
            out.push(format!("{at}: breaks {rule} {wanted}"));
        }
    }
}

fn check(document: &Value) -> Vec<String> {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let mut out = Vec::new();
    violations(&schema, &schema, document, "$", &mut out);
    out
}

fn exported() -> Value {
    let meta = super::healthy();
    meta.transact(fill_rare_tables).expect("commits");
    serde_json::from_str(&super::export_of(&meta).0).expect("JSON")
}

/// A row of every table and every kind of intent, operation and extent.
pub(super) fn fill_rare_tables(tx: &mut crate::meta::Tx<'_>) -> crate::base::Result<()> {
    use super::*;
    tx.put::<Devices>(
        &DeviceId(0),
        &DeviceRow {
            uuid: [3; 16],
            state: 0,
            class: 2,
            tier: 0,
            weight_milli: 1000,
            failure_domain: 7,
            blocks: 20_000,
            used_blocks: 3,
            read_errors: 0,
            write_errors: 0,
            checksum_errors: 0,
            read_latency_us_ewma: 0,
            write_latency_us_ewma: 0,
            risk_milli: 0,
        },
    )?;
    let intents = [
        Intent::Truncate { ino: 3, from: 4, txn: 5 },
        Intent::Rebuild { stripe: 1 },
        Intent::Destage { ino: 3, offset: 0 },
        Intent::Evacuate { device: 1 },
    ];
    for (id, intent) in intents.iter().enumerate() {
        tx.put::<Intents>(&(id as u64), intent)?;
    }
    let name = b"n\xfe".to_vec();
    let operations = [
        JournalOp::Link { ino: 1, parent: 2, name: name.clone() },
        JournalOp::Unlink { ino: 1, parent: 2, name: name.clone() },
        JournalOp::Rmdir { ino: 1, parent: 2, name: b"plain".to_vec() },
        JournalOp::Rename { from: 1, name: name.clone(), to: 2, new_name: b"x".to_vec(), ino: 3, flags: 1 },
        JournalOp::SetAttr { ino: 1, mask: 2, mode: 3, uid: 4, gid: 5, size: 6 },
        JournalOp::SetXattr { ino: 1, name: name.clone(), length: 2 },
        JournalOp::RemoveXattr { ino: 1, name: name.clone() },
        JournalOp::Fallocate { ino: 1, mode: 2, offset: 3, length: 4 },
        JournalOp::CopyRange { from: 1, to: 2, from_offset: 3, to_offset: 4, length: 5 },
        JournalOp::Reclaim { ino: 5 },
        JournalOp::Device { id: 1, action: b"replaced".to_vec() },
        JournalOp::Recover { archive: 1, stripes: 2 },
        JournalOp::Repair { issue: b"row-undecodable".to_vec(), what: name.clone() },
    ];
    for operation in operations {
        tx.journal(1000, operation)?;
    }
    tx.put::<Extents>(&ExtentKey { ino: ORPHAN, offset: 0 }, &extent(4096, ExtentBody::Reserved))?;
    let plain = Run::plain(STRIPE, 5, 100);
    let sealed = Run { logical: 300, inside: 7, codec: 1, key_generation: 2, nonce: [3; 24], tag: [4; 16], ..plain };
    tx.put::<Extents>(&ExtentKey { ino: ORPHAN, offset: 4096 }, &extent(200, ExtentBody::Run(sealed)))?;
    tx.put::<History>(
        &HistoryKey { table: 0, row_key: vec![1] },
        &HistoryRow { death: TxnId(3), present: 1, row: vec![2] },
    )?;
    tx.put::<HistoryByDeath>(&HistoryByDeathKey { death: TxnId(3), table: 0, row_key: vec![1] }, &())?;
    let snapshot = SnapshotRow { txn: TxnId(2), created: Timestamp { seconds: -1, nanos: 0 }, view: 3 };
    tx.put::<Snapshots>(&SnapshotKey { name: b"daily".to_vec() }, &snapshot)?;
    tx.put::<Decisions>(&0, &vec![1])?;
    tx.put::<Policies>(&0, &vec![1])?;
    tx.put::<crate::format::table::Damage>(
        &StripeId(1),
        &DamageRow { found: Timestamp { seconds: 1, nanos: 2 }, bad: 3 },
    )?;
    let degraded = StripeRow {
        state: StripeState::Degraded,
        placements: vec![Placement::NONE, stripe().placements[1], stripe().placements[2]],
        ..stripe()
    };
    tx.put::<Stripes>(&StripeId(1), &degraded)
}

#[test]
fn the_schema_describes_every_table() {
    let document = exported();
    for (table, rows) in document["tables"].as_object().expect("tables") {
        assert!(rows.as_array().is_some_and(|rows| !rows.is_empty()), "{table} was not exercised");
    }
    let wrong = check(&document);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_schema_refuses_what_it_should() {
    let sound = exported();
    let breaks = |change: &dyn Fn(&mut Value)| {
        let mut document = sound.clone();
        change(&mut document);
        assert!(!check(&document).is_empty());
    };
    breaks(&|document| document["argosfs_export"] = 2.into());
    breaks(&|document| document["tables"]["inodes"][0]["mode"] = "755".into());
    breaks(&|document| document["tables"]["inodes"][0]["surprise"] = 1.into());
    breaks(&|document| drop(document["tables"]["dentries"][0].as_object_mut().expect("a row").remove("ino")));
    breaks(&|document| document["blake3"] = "XYZ".into());
    breaks(&|document| drop(document["tables"].as_object_mut().expect("tables").remove("journal")));
}
