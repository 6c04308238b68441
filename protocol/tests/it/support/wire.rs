//! Examples of all frames of the wire, with a reader for each.

use tidegate_protocol::FormatError;
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::pack::Location;
use tidegate_protocol::wire::{
    AnswerHead, AppendRequest, DeleteRequest, FollowPart, FollowRequest, GetAnswer, GetRequest,
    HaveAnswer, HaveRequest, HelloAnswer, HelloRequest, JoinAnswer, JoinRequest, Kind, ListEntry,
    ListPart, ListRequest, Nothing, PART_HEAD_BYTES, Priority, Problem, PutRequest, RenewAnswer,
    RenewRequest, RequestHead, SizeAnswer, SizeRequest, Status, StatusAnswer, StatusRequest,
    WireMessage, chunk_ids, decode_known, decode_part_head, encode_answer, encode_known,
    encode_part, encode_request,
};

/// A frame, what it is called, and its reader, which writes again what it has read.
pub(crate) struct Frame {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) read: fn(&[u8]) -> Result<Vec<u8>, FormatError>,
}

fn too_short() -> FormatError {
    FormatError::Message {
        object: "frame",
        detail: "it is too short".to_owned(),
    }
}

fn again_request<M: WireMessage>(bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
    let (head, message) = bytes
        .split_first_chunk::<{ RequestHead::BYTES }>()
        .ok_or_else(too_short)?;
    let head = RequestHead::decode(head)?;
    let kind = head.kind().ok_or_else(too_short)?;
    encode_request(kind, head.priority, &M::from_bytes(message)?)
}

fn again_answer<M: WireMessage>(bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
    let (head, message) = bytes
        .split_first_chunk::<{ AnswerHead::BYTES }>()
        .ok_or_else(too_short)?;
    encode_answer(AnswerHead::decode(head)?.status, &M::from_bytes(message)?)
}

fn again_part<M: WireMessage>(bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
    let (head, message) = bytes
        .split_first_chunk::<PART_HEAD_BYTES>()
        .ok_or_else(too_short)?;
    decode_part_head(head)?;
    encode_part(&M::from_bytes(message)?)
}

fn request<M: WireMessage>(
    name: &'static str,
    kind: Kind,
    priority: Priority,
    message: &M,
) -> Frame {
    Frame {
        name,
        bytes: encode_request(kind, priority, message).unwrap(),
        read: again_request::<M>,
    }
}

fn answer<M: WireMessage>(name: &'static str, status: Status, message: &M) -> Frame {
    Frame {
        name,
        bytes: encode_answer(status, message).unwrap(),
        read: again_answer::<M>,
    }
}

fn part<M: WireMessage>(name: &'static str, message: &M) -> Frame {
    Frame {
        name,
        bytes: encode_part(message).unwrap(),
        read: again_part::<M>,
    }
}

/// One of each.
pub(crate) fn frames() -> Vec<Frame> {
    let pack = || PackId([0xab; 32]).object_key();
    let place = |pack: u8, frame_offset| Location {
        pack: PackId([pack; 32]),
        frame_offset,
        frame_bytes: 70_000,
        offset_in_frame: 4096,
        length: 32_768,
    };
    let known = [
        Some(place(1, 64)),
        None,
        Some(place(2, 1 << 20)),
        Some(place(1, 64)),
    ];
    let chunks = (1..=4).map(|byte| ChunkId([byte; 32]));
    let (restore, backup) = (Priority::Restore, Priority::Backup);
    vec![
        request(
            "hello-request",
            Kind::Hello,
            backup,
            &HelloRequest {
                program: "tidegate 0.1.0".to_owned(),
                features: vec![1, 300],
                repository: "main".to_owned(),
            },
        ),
        answer(
            "hello-answer",
            Status::Ok,
            &HelloAnswer {
                program: "tidegated 0.1.0".to_owned(),
                features: vec![1],
                repository_id: vec![0x11; 16],
                host: "hv1".to_owned(),
                rights: 3,
                requests_max: 64,
            },
        ),
        request(
            "have-request",
            Kind::Have,
            backup,
            &HaveRequest::new(chunks),
        ),
        answer("have-answer", Status::Ok, &encode_known(&known)),
        request(
            "put-request",
            Kind::Put,
            backup,
            &PutRequest {
                key: pack(),
                length: 32 << 20,
            },
        ),
        answer("ready", Status::Ready, &Nothing {}),
        answer("put-answer", Status::Exists, &Nothing {}),
        request(
            "get-request",
            Kind::Get,
            restore,
            &GetRequest {
                key: pack(),
                start: 1 << 20,
                end: Some(3 << 20),
            },
        ),
        answer(
            "get-answer",
            Status::Ok,
            &GetAnswer {
                size: 32 << 20,
                start: 1 << 20,
                end: 3 << 20,
            },
        ),
        request(
            "size-request",
            Kind::Size,
            restore,
            &SizeRequest { key: pack() },
        ),
        answer("size-answer", Status::Ok, &SizeAnswer { size: 32 << 20 }),
        request(
            "list-request",
            Kind::List,
            backup,
            &ListRequest {
                prefix: "log".to_owned(),
                after: "log/00000000000000000041".to_owned(),
            },
        ),
        part(
            "list-part",
            &ListPart {
                entries: vec![
                    ListEntry {
                        key: "log/00000000000000000042".to_owned(),
                        size: 800,
                    },
                    ListEntry {
                        key: "log/00000000000000000043".to_owned(),
                        size: 1200,
                    },
                ],
            },
        ),
        request(
            "append-request",
            Kind::Append,
            backup,
            &AppendRequest {
                number: 44,
                length: 900,
            },
        ),
        request(
            "follow-request",
            Kind::Follow,
            Priority::Replication,
            &FollowRequest {
                after: 41,
                wait: true,
            },
        ),
        part(
            "follow-part",
            &FollowPart {
                number: 42,
                length: 800,
            },
        ),
        request(
            "delete-request",
            Kind::Delete,
            backup,
            &DeleteRequest { key: pack() },
        ),
        request("status-request", Kind::Status, backup, &StatusRequest {}),
        answer(
            "status-answer",
            Status::Ok,
            &StatusAnswer {
                program: "tidegated 0.1.0".to_owned(),
                up_seconds: 3600,
                connections: 12,
                requests: 3,
                head: 44,
                store_answers: true,
            },
        ),
        request(
            "renew-request",
            Kind::Renew,
            backup,
            &RenewRequest {
                request: vec![0x30, 0x82, 0x01],
            },
        ),
        answer(
            "renew-answer",
            Status::Ok,
            &RenewAnswer {
                certificates: vec![vec![0x30, 0x82], vec![0x30, 0x81]],
            },
        ),
        request(
            "join-request",
            Kind::Join,
            backup,
            &JoinRequest {
                id: vec![1; 16],
                secret: vec![2; 32],
                request: vec![0x30, 0x82, 0x01],
            },
        ),
        answer(
            "join-answer",
            Status::Ok,
            &JoinAnswer {
                certificates: vec![vec![0x30, 0x82]],
                host: "hv1".to_owned(),
            },
        ),
        answer(
            "problem",
            Status::Busy,
            &Problem::new("64 requests stand side by side, more than agreed", 500),
        ),
    ]
}

/// Has every reader read the bytes: the first one chooses it. Panics where something that was read
/// is not written so that it is read as the same again.
pub(crate) fn read_anything(bytes: &[u8]) {
    let Some((reader, bytes)) = bytes.split_first() else {
        return;
    };
    let frames = frames();
    let reader = usize::from(*reader) % (frames.len() + 1);
    match frames.get(reader) {
        Some(frame) => {
            if let Ok(again) = (frame.read)(bytes) {
                assert_eq!((frame.read)(&again).as_ref(), Ok(&again), "{}", frame.name);
            }
        }
        None => known(bytes),
    }
}

fn known(bytes: &[u8]) {
    if let Ok(request) = HaveRequest::from_bytes(bytes) {
        assert_eq!(HaveRequest::new(chunk_ids(&request)), request);
    }
    let Ok(answer) = HaveAnswer::from_bytes(bytes) else {
        return;
    };
    for asked in [0, 1, 2, answer.entries.len()] {
        if let Ok(known) = decode_known(&answer, asked) {
            let again = encode_known(&known);
            assert_eq!(decode_known(&again, asked), Ok(known));
        }
    }
}
