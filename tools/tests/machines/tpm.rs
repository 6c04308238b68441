//! What a guest says to its TPM.

use tidegate_agent::testing::Console;

/// What the guest gives its TPM to remember.
pub(crate) const SECRET: &str = "7365616c65642021";

/// Says a command to the guest's TPM, and hands back what follows the header of its answer.
///
/// Commands are those of the TCG's TPM 2.0 library, part 3, for an index that needs no password.
fn say(console: &mut Console, code: &str, behind: &str) -> String {
    const NO_PASSWORD: &str = "00000009_40000009_0000_00_0000";
    let command = format!("{code}_{NO_PASSWORD}_{behind}").replace('_', "");
    let size_bytes = 6 + command.len() / 2;
    let command = hex::decode(format!("8002{size_bytes:08x}{command}")).unwrap();
    let bytes = command.iter().map(|byte| format!("\\x{byte:02x}"));
    let told = console.run(&format!(
        "exec 3<>/dev/tpm0; printf '{}' >&3; dd bs=4096 count=1 <&3 2>/dev/null | hexdump -v -e '1/1 \"%02x\"'; \
         exec 3<&-",
        bytes.collect::<String>()
    ));
    let told = told.trim();
    assert_eq!(told.get(12..20), Some("00000000"), "{code}: {told}");
    told[20..].to_owned()
}

/// Gives the TPM something to remember.
pub(crate) fn seal(console: &mut Console) {
    let define = "0000_000e_01500001_000b_02040004_0000_0008";
    say(console, "0000012a_40000001", define);
    let write = format!("0008_{SECRET}_0000");
    say(console, "00000137_01500001_01500001", &write);
}

/// What the TPM remembers of it.
pub(crate) fn unseal(console: &mut Console) -> String {
    let told = say(console, "0000014e_01500001_01500001", "0008_0000");
    told[12..28].to_owned()
}
