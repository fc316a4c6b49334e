//! A short run of the proof with a fixed seed, as a part of `make test`; `make proof` is the long one.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, ensure};
use orderflow_proof::{Settings, fault, run};
use orderflow_testbed::{Store, folder};

#[tokio::test(flavor = "multi_thread")]
async fn a_short_storm_loses_and_duplicates_no_order() -> Result<()> {
    let report = run(Settings {
        seed: Some(6),
        minutes: 0.5,
        rate: 60,
        store: Store::Versitygw,
        folder: Some(folder::for_test_process()?.join("short")),
    })
    .await?;
    ensure!(report.passed(), "{report}");
    let struck: usize = report.faults.values().map(|recoveries| recoveries.times).sum();
    ensure!(struck >= 10 && report.verdict.counts.acked > 500, "too little happened to show anything: {report}");
    Ok(())
}

/// A failpoint that is missing in the list would never be reached.
#[test]
fn every_failpoint_in_the_code_is_a_fault() -> Result<()> {
    let mut named = BTreeSet::new();
    for member in ["service", "dead-letters", "provision", "producer", "consumer"] {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(member).join("src"), &mut named)?;
    }
    let known: BTreeSet<String> = fault::FAILPOINTS.iter().map(ToString::to_string).collect();
    assert_eq!(named, known);
    Ok(())
}

/// Collects the names of all failpoints in the sources below a folder at which a process may end.
fn collect(folder: &Path, named: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, named)?;
            continue;
        }
        let source = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let reached = source.split(" reached(\"").skip(1).filter_map(|found| Some(found.split_once('"')?.0.to_owned()));
        named.extend(reached);
        for found in source.split("fail_point!(\"").skip(1) {
            if let Some((name, action)) = found.split_once('"')
                && action.starts_with(", |_| std::process::abort())")
            {
                named.insert(name.to_owned());
            }
        }
    }
    Ok(())
}
