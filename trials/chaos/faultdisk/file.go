package faultdisk

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// file is an open file. It does not embed the file below, because that offers the kernel
// a way to write past this process.
type file struct {
	below *fs.LoopbackFile
	disk  *Disk
}

// file wraps what was opened without an error.
func (d *Disk) file(f fs.FileHandle, e syscall.Errno) fs.FileHandle {
	if e != 0 {
		return nil
	}
	return &file{f.(*fs.LoopbackFile), d}
}

// Write implements fs.FileWriter.
func (f *file) Write(ctx context.Context, data []byte, at int64) (uint32, syscall.Errno) {
	if e := f.disk.write(); e != 0 {
		return 0, e
	}
	return f.below.Write(ctx, data, at)
}

// Fsync implements fs.FileFsyncer.
func (f *file) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if e := f.disk.sync(); e != 0 {
		return e
	}
	return f.below.Fsync(ctx, flags)
}

// Allocate implements fs.FileAllocater.
func (f *file) Allocate(ctx context.Context, at, size uint64, mode uint32) syscall.Errno {
	if e := f.disk.write(); e != 0 {
		return e
	}
	return f.below.Allocate(ctx, at, size, mode)
}

// Read implements fs.FileReader.
func (f *file) Read(ctx context.Context, into []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	return f.below.Read(ctx, into, at)
}

// Flush implements fs.FileFlusher.
func (f *file) Flush(ctx context.Context) syscall.Errno { return f.below.Flush(ctx) }

// Release implements fs.FileReleaser.
func (f *file) Release(ctx context.Context) syscall.Errno { return f.below.Release(ctx) }

// Getattr implements fs.FileGetattrer.
func (f *file) Getattr(ctx context.Context, out *fuse.AttrOut) syscall.Errno {
	return f.below.Getattr(ctx, out)
}

// Setattr implements fs.FileSetattrer.
func (f *file) Setattr(ctx context.Context, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.below.Setattr(ctx, in, out)
}

// Lseek implements fs.FileLseeker.
func (f *file) Lseek(ctx context.Context, at uint64, whence uint32) (uint64, syscall.Errno) {
	return f.below.Lseek(ctx, at, whence)
}
