//! Bindings to `linux/videodev2.h`, generated once and checked in; see README.md.
//!
//! They hold for 32-bit and 64-bit machines alike: the structs are written in `c_long`, pointers and fixed-width
//! integers, and the assertions below say what size each must come out at, because the size is a part of the ioctl's
//! number.

#![expect(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    reason = "the names are those of the C header"
)]

mod bindings;

pub use bindings::*;

/// Asserts the size of a struct: on 64-bit machines, on 32-bit machines, and on 32-bit x86, where 64-bit integers are
/// aligned to 4 bytes.
macro_rules! sizes {
    ($($name:ident: $long:literal $short:literal $x86:literal)+) => {
        $(const _: () = assert!(
            core::mem::size_of::<$name>()
                == if cfg!(target_pointer_width = "64") {
                    $long
                } else if cfg!(target_arch = "x86") {
                    $x86
                } else {
                    $short
                },
            concat!("size of ", stringify!($name)),
        );)+
    };
}

// The figures are those of the C compiler. v4l2_buffer is the one with 32-bit time where `long` has 32 bits.
sizes! {
    v4l2_audio: 52 52 52
    v4l2_audioout: 52 52 52
    v4l2_buffer: 88 68 68
    v4l2_capability: 104 104 104
    v4l2_captureparm: 40 40 40
    v4l2_control: 8 8 8
    v4l2_crop: 20 20 20
    v4l2_cropcap: 44 44 44
    v4l2_edid: 40 36 36
    v4l2_enc_idx: 2072 2072 2072
    v4l2_encoder_cmd: 40 40 40
    v4l2_exportbuffer: 64 64 64
    v4l2_ext_control: 20 20 20
    v4l2_ext_controls: 32 24 24
    v4l2_fmtdesc: 64 64 64
    v4l2_format: 208 204 204
    v4l2_framebuffer: 48 44 44
    v4l2_frequency: 44 44 44
    v4l2_frmivalenum: 52 52 52
    v4l2_frmsizeenum: 44 44 44
    v4l2_input: 80 80 76
    v4l2_jpegcompression: 140 140 140
    v4l2_modulator: 68 68 68
    v4l2_output: 72 72 72
    v4l2_pix_format: 48 48 48
    v4l2_pix_format_mplane: 192 192 192
    v4l2_plane: 64 60 60
    v4l2_query_ext_ctrl: 232 232 232
    v4l2_queryctrl: 68 68 68
    v4l2_querymenu: 44 44 44
    v4l2_requestbuffers: 20 20 20
    v4l2_sliced_vbi_cap: 116 116 116
    v4l2_standard: 72 72 64
    v4l2_streamparm: 204 204 204
    v4l2_tuner: 84 84 84
}
