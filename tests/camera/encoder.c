// SPDX-License-Identifier: MIT-0
/*
 * A camera with an encoder, as those of camera chips are to V4L2: multi-planar, with videobuf2's buffers and the controls of
 * a codec. What it encodes a test writes to /dev/encoder-feed, one access unit at a time; a single byte there is an accident:
 *
 *   'd'  it has a frame and no buffer for it: the sequence goes on
 *   'e'  a buffer is damaged
 *   'z'  a buffer is empty
 *
 * Reading /dev/encoder-feed gives, in text, how often a key frame was asked for. With the parameter `old` it is a 32-bit
 * kernel before 5.6, which does not know buffers with 64-bit time.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <media/v4l2-ctrls.h>
#include <media/v4l2-device.h>
#include <media/v4l2-fh.h>
#include <media/v4l2-ioctl.h>
#include <media/videobuf2-v4l2.h>
#include <media/videobuf2-vmalloc.h>

#define NAME "encoder"
#define CARD "Chip Camera"
#define LONGEST_FRAME (256 * 1024)

static int video_nr = -1;
module_param(video_nr, int, 0444);

static bool old;
module_param(old, bool, 0644);

struct buffer {
	struct vb2_v4l2_buffer vb;
	struct list_head list;
};

static struct v4l2_device device;
static struct video_device video;
static struct v4l2_ctrl_handler controls;
static struct vb2_queue queue;
static DEFINE_MUTEX(lock);
/* The buffers that are free, and what is known about the stream. */
static DEFINE_SPINLOCK(state);
static LIST_HEAD(free_buffers);
static bool streaming;
static u32 sequence;
static atomic_t key_frames_asked_for = ATOMIC_INIT(0);

static const u32 formats[] = { V4L2_PIX_FMT_H264, V4L2_PIX_FMT_HEVC };
static struct v4l2_pix_format_mplane format = { .width = 1280, .height = 720, .pixelformat = V4L2_PIX_FMT_HEVC };
static struct v4l2_fract interval = { 1, 30 };

static int queue_setup(struct vb2_queue *q, unsigned int *buffers, unsigned int *planes, unsigned int sizes[],
		       struct device *alloc_devs[])
{
	*buffers = clamp(*buffers, 2U, 8U);
	*planes = 1;
	sizes[0] = LONGEST_FRAME;
	return 0;
}

static void buf_queue(struct vb2_buffer *vb)
{
	struct buffer *buffer = container_of(to_vb2_v4l2_buffer(vb), struct buffer, vb);

	spin_lock(&state);
	list_add_tail(&buffer->list, &free_buffers);
	spin_unlock(&state);
}

static int start_streaming(struct vb2_queue *q, unsigned int count)
{
	spin_lock(&state);
	sequence = 0;
	streaming = true;
	spin_unlock(&state);
	return 0;
}

static struct buffer *take_buffer(void)
{
	struct buffer *buffer = list_first_entry_or_null(&free_buffers, struct buffer, list);

	if (buffer)
		list_del(&buffer->list);
	return buffer;
}

static void stop_streaming(struct vb2_queue *q)
{
	struct buffer *buffer;

	spin_lock(&state);
	streaming = false;
	while ((buffer = take_buffer()))
		vb2_buffer_done(&buffer->vb.vb2_buf, VB2_BUF_STATE_ERROR);
	spin_unlock(&state);
}

static const struct vb2_ops queue_ops = {
	.queue_setup = queue_setup,
	.buf_queue = buf_queue,
	.start_streaming = start_streaming,
	.stop_streaming = stop_streaming,
	.wait_prepare = vb2_ops_wait_prepare,
	.wait_finish = vb2_ops_wait_finish,
};

static ssize_t feed_write(struct file *file, const char __user *unit, size_t length, loff_t *at)
{
	struct buffer *buffer = NULL;
	char accident = 0;
	u32 number = 0;
	bool lost;

	if (length > LONGEST_FRAME)
		return -EMSGSIZE;
	if (length == 1 && get_user(accident, unit))
		return -EFAULT;
	spin_lock(&state);
	if (streaming) {
		number = sequence++;
		if (accident != 'd')
			buffer = take_buffer();
	}
	spin_unlock(&state);
	if (!buffer)
		return length;
	lost = !accident && copy_from_user(vb2_plane_vaddr(&buffer->vb.vb2_buf, 0), unit, length);
	buffer->vb.sequence = number;
	buffer->vb.field = V4L2_FIELD_NONE;
	buffer->vb.vb2_buf.timestamp = ktime_get_ns();
	vb2_set_plane_payload(&buffer->vb.vb2_buf, 0, accident ? 0 : length);
	vb2_buffer_done(&buffer->vb.vb2_buf, accident == 'e' || lost ? VB2_BUF_STATE_ERROR : VB2_BUF_STATE_DONE);
	return lost ? -EFAULT : length;
}

static ssize_t feed_read(struct file *file, char __user *text, size_t length, loff_t *at)
{
	char count[16];
	int size = scnprintf(count, sizeof(count), "%d\n", atomic_read(&key_frames_asked_for));

	return simple_read_from_buffer(text, length, at, count, size);
}

static const struct file_operations feed_ops = {
	.owner = THIS_MODULE,
	.read = feed_read,
	.write = feed_write,
};

static struct miscdevice feed = { .minor = MISC_DYNAMIC_MINOR, .name = "encoder-feed", .fops = &feed_ops };

static int querycap(struct file *file, void *fh, struct v4l2_capability *capability)
{
	strscpy(capability->driver, NAME, sizeof(capability->driver));
	strscpy(capability->card, CARD, sizeof(capability->card));
	strscpy(capability->bus_info, "platform:" NAME, sizeof(capability->bus_info));
	return 0;
}

static int enum_fmt(struct file *file, void *fh, struct v4l2_fmtdesc *entry)
{
	if (entry->index >= ARRAY_SIZE(formats))
		return -EINVAL;
	entry->pixelformat = formats[entry->index];
	entry->flags = V4L2_FMT_FLAG_COMPRESSED;
	return 0;
}

static int g_fmt(struct file *file, void *fh, struct v4l2_format *f)
{
	f->fmt.pix_mp = format;
	return 0;
}

static int try_fmt(struct file *file, void *fh, struct v4l2_format *f)
{
	struct v4l2_pix_format_mplane *picture = &f->fmt.pix_mp;

	if (picture->pixelformat != V4L2_PIX_FMT_HEVC)
		picture->pixelformat = V4L2_PIX_FMT_H264;
	/* Whole macroblocks, as chips have it, but for 1080 lines. */
	v4l_bound_align_image(&picture->width, 64, 1920, 4, &picture->height, 64, 1080, 3, 0);
	picture->field = V4L2_FIELD_NONE;
	picture->colorspace = V4L2_COLORSPACE_REC709;
	picture->num_planes = 1;
	picture->plane_fmt[0].sizeimage = LONGEST_FRAME;
	picture->plane_fmt[0].bytesperline = 0;
	return 0;
}

static int s_fmt(struct file *file, void *fh, struct v4l2_format *f)
{
	if (vb2_is_busy(&queue))
		return -EBUSY;
	try_fmt(file, fh, f);
	format = f->fmt.pix_mp;
	return 0;
}

static int g_parm(struct file *file, void *fh, struct v4l2_streamparm *parameters)
{
	if (parameters->type != V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE)
		return -EINVAL;
	parameters->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
	parameters->parm.capture.timeperframe = interval;
	return 0;
}

static int s_parm(struct file *file, void *fh, struct v4l2_streamparm *parameters)
{
	struct v4l2_fract wanted = parameters->parm.capture.timeperframe;

	/* No faster than 30 a second. */
	if (!wanted.numerator || !wanted.denominator || wanted.denominator > 30 * wanted.numerator)
		wanted = (struct v4l2_fract){ 1, 30 };
	interval = wanted;
	return g_parm(file, fh, parameters);
}

static int enum_framesizes(struct file *file, void *fh, struct v4l2_frmsizeenum *entry)
{
	if (entry->index || (entry->pixel_format != formats[0] && entry->pixel_format != formats[1]))
		return -EINVAL;
	entry->type = V4L2_FRMSIZE_TYPE_STEPWISE;
	entry->stepwise = (struct v4l2_frmsize_stepwise){ 64, 1920, 16, 64, 1080, 8 };
	return 0;
}

static const struct v4l2_ioctl_ops ioctl_ops = {
	.vidioc_querycap = querycap,
	.vidioc_enum_fmt_vid_cap = enum_fmt,
	.vidioc_g_fmt_vid_cap_mplane = g_fmt,
	.vidioc_s_fmt_vid_cap_mplane = s_fmt,
	.vidioc_try_fmt_vid_cap_mplane = try_fmt,
	.vidioc_g_parm = g_parm,
	.vidioc_s_parm = s_parm,
	.vidioc_enum_framesizes = enum_framesizes,
	.vidioc_reqbufs = vb2_ioctl_reqbufs,
	.vidioc_querybuf = vb2_ioctl_querybuf,
	.vidioc_qbuf = vb2_ioctl_qbuf,
	.vidioc_dqbuf = vb2_ioctl_dqbuf,
	.vidioc_streamon = vb2_ioctl_streamon,
	.vidioc_streamoff = vb2_ioctl_streamoff,
};

static long ioctl(struct file *file, unsigned int call, unsigned long argument)
{
	bool about_buffer = call == VIDIOC_QUERYBUF || call == VIDIOC_QBUF || call == VIDIOC_DQBUF;

	return old && about_buffer ? -ENOTTY : video_ioctl2(file, call, argument);
}

static const struct v4l2_file_operations video_ops = {
	.owner = THIS_MODULE,
	.open = v4l2_fh_open,
	.release = vb2_fop_release,
	.poll = vb2_fop_poll,
	.mmap = vb2_fop_mmap,
	.unlocked_ioctl = ioctl,
};

static int s_ctrl(struct v4l2_ctrl *control)
{
	if (control->id == V4L2_CID_MPEG_VIDEO_FORCE_KEY_FRAME)
		atomic_inc(&key_frames_asked_for);
	return 0;
}

static const struct v4l2_ctrl_ops control_ops = { .s_ctrl = s_ctrl };

static void add_controls(void)
{
	static const struct {
		u32 id;
		s64 least, most, step, first;
	} numbers[] = {
		{ V4L2_CID_MPEG_VIDEO_BITRATE, 25000, 4000000, 25000, 1000000 },
		{ V4L2_CID_MPEG_VIDEO_H264_I_PERIOD, 0, 600, 1, 60 },
		{ V4L2_CID_MPEG_VIDEO_B_FRAMES, 0, 2, 1, 2 },
		{ V4L2_CID_MPEG_VIDEO_REPEAT_SEQ_HEADER, 0, 1, 1, 0 },
		{ V4L2_CID_MPEG_VIDEO_FORCE_KEY_FRAME, 0, 0, 0, 0 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(numbers); i++)
		v4l2_ctrl_new_std(&controls, &control_ops, numbers[i].id, numbers[i].least, numbers[i].most,
				  numbers[i].step, numbers[i].first);
	v4l2_ctrl_new_std_menu(&controls, &control_ops, V4L2_CID_MPEG_VIDEO_BITRATE_MODE,
			       V4L2_MPEG_VIDEO_BITRATE_MODE_CBR, 0, V4L2_MPEG_VIDEO_BITRATE_MODE_VBR);
	/* It has no High. */
	v4l2_ctrl_new_std_menu(&controls, &control_ops, V4L2_CID_MPEG_VIDEO_H264_PROFILE,
			       V4L2_MPEG_VIDEO_H264_PROFILE_MAIN, 0, V4L2_MPEG_VIDEO_H264_PROFILE_MAIN);
	v4l2_ctrl_new_std_menu(&controls, &control_ops, V4L2_CID_MPEG_VIDEO_H264_LEVEL,
			       V4L2_MPEG_VIDEO_H264_LEVEL_4_0, 0, V4L2_MPEG_VIDEO_H264_LEVEL_1_0);
}

static int __init start(void)
{
	struct v4l2_format first = { .fmt.pix_mp = format };
	int error;

	try_fmt(NULL, NULL, &first);
	format = first.fmt.pix_mp;
	strscpy(device.name, NAME, sizeof(device.name));
	error = v4l2_device_register(NULL, &device);
	if (error)
		return error;
	v4l2_ctrl_handler_init(&controls, 8);
	add_controls();
	error = controls.error;
	if (error)
		goto free_controls;
	device.ctrl_handler = &controls;

	queue.type = V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE;
	queue.io_modes = VB2_MMAP;
	queue.buf_struct_size = sizeof(struct buffer);
	queue.ops = &queue_ops;
	queue.mem_ops = &vb2_vmalloc_memops;
	queue.timestamp_flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
	queue.lock = &lock;
	error = vb2_queue_init(&queue);
	if (error)
		goto free_controls;

	strscpy(video.name, CARD, sizeof(video.name));
	video.v4l2_dev = &device;
	video.fops = &video_ops;
	video.ioctl_ops = &ioctl_ops;
	video.queue = &queue;
	video.lock = &lock;
	video.release = video_device_release_empty;
	video.device_caps = V4L2_CAP_VIDEO_CAPTURE_MPLANE | V4L2_CAP_STREAMING;
	error = video_register_device(&video, VFL_TYPE_VIDEO, video_nr);
	if (error)
		goto free_controls;
	error = misc_register(&feed);
	if (error)
		goto unregister;
	return 0;

unregister:
	video_unregister_device(&video);
free_controls:
	v4l2_ctrl_handler_free(&controls);
	v4l2_device_unregister(&device);
	return error;
}

static void __exit end(void)
{
	misc_deregister(&feed);
	vb2_video_unregister_device(&video);
	v4l2_ctrl_handler_free(&controls);
	v4l2_device_unregister(&device);
}

module_init(start);
module_exit(end);
MODULE_DESCRIPTION("A camera with an encoder, for tests");
MODULE_LICENSE("Dual MIT/GPL");
