package wire

// Start asks for a new process. Its output follows on the same stream.
type Start struct {
	Argv      []string `cbor:"1,keyasint,omitempty"`
	Shell     string   `cbor:"2,keyasint,omitempty"`
	Dir       string   `cbor:"3,keyasint,omitempty"`
	Env       []string `cbor:"4,keyasint,omitempty"` // NAME=value; added to the guest's defaults
	User      string   `cbor:"5,keyasint,omitempty"` // name or uid, with :group or without
	TTY       *Size    `cbor:"6,keyasint,omitempty"`
	Stdin     bool     `cbor:"7,keyasint,omitempty"` // leave standard input open for OpStdin
	TimeoutMS int64    `cbor:"8,keyasint,omitempty"`
	GraceMS   int64    `cbor:"9,keyasint,omitempty"`
	Retain    bool     `cbor:"10,keyasint,omitempty"` // keep the output and the process's entry after it ended
	Spool     int      `cbor:"11,keyasint,omitempty"` // bytes of output kept
	Detach    bool     `cbor:"12,keyasint,omitempty"` // no output on this stream; needs Retain
	Part      string   `cbor:"13,keyasint,omitempty"` // a part of the guest's own program, such as PartSFTP, in the place of Argv and Shell
}

// Size is a terminal's size.
type Size struct {
	Rows uint16 `cbor:"1,keyasint"`
	Cols uint16 `cbor:"2,keyasint"`
}

// Started answers Start and Attach.
type Started struct {
	ID     uint64 `cbor:"1,keyasint"`
	Offset int64  `cbor:"2,keyasint,omitempty"` // position of the first byte that follows
}

// Attach asks for a process's output from a position on.
type Attach struct {
	ID     uint64 `cbor:"1,keyasint"`
	Offset int64  `cbor:"2,keyasint"`
}

// Exit tells how a process ended.
type Exit struct {
	Code       int    `cbor:"1,keyasint"`
	Signal     string `cbor:"2,keyasint,omitempty"`
	TimedOut   bool   `cbor:"3,keyasint,omitempty"`
	Stdout     int64  `cbor:"4,keyasint"`
	Stderr     int64  `cbor:"5,keyasint"`
	DurationUS int64  `cbor:"6,keyasint"`
	Note       string `cbor:"7,keyasint,omitempty"`
}

// ProcessRef names a process; OpRelease.
type ProcessRef struct {
	ID uint64 `cbor:"1,keyasint"`
}

// Stdin announces bytes for a process's standard input. A second reply follows
// when all of them were written.
type Stdin struct {
	ID       uint64 `cbor:"1,keyasint"`
	KeepOpen bool   `cbor:"2,keyasint,omitempty"` // the end of the stream is not end of file
	WaitMS   int64  `cbor:"3,keyasint,omitempty"` // how long the process may leave them unread; 0: for ever
}

// Signal asks for a signal to a process's group. With Tree KILL goes to everything
// that the process started; what a process left behind gets any signal.
type Signal struct {
	ID   uint64 `cbor:"1,keyasint"`
	Name string `cbor:"2,keyasint"` // "TERM", "SIGTERM" or a number
	Tree bool   `cbor:"3,keyasint,omitempty"`
	// GraceMS, when set, follows the signal by KILL to the tree if anything
	// of it is left after that time.
	GraceMS int64 `cbor:"4,keyasint,omitempty"`
}

// Resize sets the size of a process's terminal.
type Resize struct {
	ID   uint64 `cbor:"1,keyasint"`
	Size Size   `cbor:"2,keyasint"`
}

// Job describes a process that runs or is retained.
type Job struct {
	ID        uint64 `cbor:"1,keyasint"`
	Command   string `cbor:"2,keyasint"`
	StartedUS int64  `cbor:"3,keyasint"` // Unix time in microseconds
	Output    int64  `cbor:"4,keyasint"` // bytes written so far
	Exit      *Exit  `cbor:"5,keyasint,omitempty"`
	Retained  bool   `cbor:"6,keyasint,omitempty"`
}

// Jobs answers OpJobs.
type Jobs struct {
	Jobs []Job `cbor:"1,keyasint"`
}

// Output asks for a process's output from a cursor on, waiting for some.
type Output struct {
	ID     uint64 `cbor:"1,keyasint"`
	Offset int64  `cbor:"2,keyasint"` // negative: the newest Max bytes
	Max    int    `cbor:"3,keyasint"` // at most MaxOutput
	WaitMS int64  `cbor:"4,keyasint,omitempty"`
}

// MaxOutput bounds Output.Max so that the answer fits a message.
const MaxOutput = MaxMessage / 2

// OutputChunk answers Output.
type OutputChunk struct {
	Data   []byte `cbor:"1,keyasint"`
	Offset int64  `cbor:"2,keyasint"` // of Data[0]; above Output.Offset when older output is gone
	Job    Job    `cbor:"3,keyasint"`
}

// FileInfo describes a file.
type FileInfo struct {
	Name    string `cbor:"1,keyasint"`
	Type    string `cbor:"2,keyasint"`
	Size    int64  `cbor:"3,keyasint"`
	Mode    uint32 `cbor:"4,keyasint"`
	UID     uint32 `cbor:"5,keyasint"`
	GID     uint32 `cbor:"6,keyasint"`
	MtimeNS int64  `cbor:"7,keyasint"`
	Target  string `cbor:"8,keyasint,omitempty"`
}

// Path names a file; OpStat (of a symlink itself with NoFollow), OpReadDir,
// OpRemove (Recursive),
// OpMkdir (Recursive makes parents), OpPack.
type Path struct {
	Path      string  `cbor:"1,keyasint"`
	Recursive bool    `cbor:"2,keyasint,omitempty"`
	NoFollow  bool    `cbor:"3,keyasint,omitempty"`
	Mode      *uint32 `cbor:"4,keyasint,omitempty"`
	Limit     int     `cbor:"5,keyasint,omitempty"`
	User      string  `cbor:"6,keyasint,omitempty"`
}

// Rename moves a file.
type Rename struct {
	From    string `cbor:"1,keyasint"`
	To      string `cbor:"2,keyasint"`
	Replace bool   `cbor:"3,keyasint,omitempty"`
}

// Read asks for a range of a file. Limit 0 means to the end.
type Read struct {
	Path   string `cbor:"1,keyasint"`
	Offset int64  `cbor:"2,keyasint,omitempty"`
	Limit  int64  `cbor:"3,keyasint,omitempty"`
}

// Write announces a file's new content; see WriteOptions of package sandbox.
type Write struct {
	Path     string  `cbor:"1,keyasint"`
	Mode     *uint32 `cbor:"2,keyasint,omitempty"`
	Append   bool    `cbor:"3,keyasint,omitempty"`
	Parents  bool    `cbor:"4,keyasint,omitempty"`
	IfSHA256 string  `cbor:"5,keyasint,omitempty"`
	IfAbsent bool    `cbor:"6,keyasint,omitempty"`
	User     string  `cbor:"7,keyasint,omitempty"`
}

// Written answers the end of a Write.
type Written struct {
	Bytes   int64 `cbor:"1,keyasint"`
	Created bool  `cbor:"2,keyasint,omitempty"`
}

// Glob asks for the files below Root whose relative path matches Pattern.
type Glob struct {
	Root    string `cbor:"1,keyasint"`
	Pattern string `cbor:"2,keyasint"`
	Limit   int    `cbor:"3,keyasint"`
}

// Grep asks for the lines of files below Root that match Pattern.
type Grep struct {
	Root       string `cbor:"1,keyasint"`
	Pattern    string `cbor:"2,keyasint"`
	Glob       string `cbor:"3,keyasint,omitempty"`
	IgnoreCase bool   `cbor:"4,keyasint,omitempty"`
	Hidden     bool   `cbor:"5,keyasint,omitempty"`
	Limit      int    `cbor:"6,keyasint"`
	MaxLine    int    `cbor:"7,keyasint"`
	Before     int    `cbor:"8,keyasint,omitempty"`
	After      int    `cbor:"9,keyasint,omitempty"`
}

// GrepMatch is one line.
type GrepMatch struct {
	Path    string `cbor:"1,keyasint"`
	Line    int    `cbor:"2,keyasint"`
	Text    string `cbor:"3,keyasint"`
	Context bool   `cbor:"4,keyasint,omitempty"`
}

// End closes a direction of a stream.
type End struct {
	Err       *Error `cbor:"1,keyasint,omitempty"`
	Truncated bool   `cbor:"2,keyasint,omitempty"`
	Skipped   int    `cbor:"3,keyasint,omitempty"` // files that could not be read
}

// Unpack announces a tar stream to be unpacked below Path.
type Unpack struct {
	Path string `cbor:"1,keyasint"`
	User string `cbor:"2,keyasint,omitempty"` // owner of everything; default: as in the archive
}

// Mounts asks that the file port's directories be put at their paths; OpMount. The
// host serves the port by then. It may be repeated: what is there stays.
type Mounts struct {
	Mounts []Mount `cbor:"1,keyasint"`
}

// Mount is one of them.
type Mount struct {
	Name     string `cbor:"1,keyasint"` // of the directory in the file port's root
	Path     string `cbor:"2,keyasint"` // absolute
	ReadOnly bool   `cbor:"3,keyasint,omitempty"`
}

// Trust is whom the guest's programs shall trust; OpTrust. It comes once, before any command.
type Trust struct {
	// UnixNano is the host's wall clock once more: this message was under way for less time
	// than the Hello, which a machine may have been woken for.
	UnixNano int64  `cbor:"3,keyasint"`
	CA       []byte `cbor:"1,keyasint"` // PEM certificate for TLS
	// KnownHosts are lines for OpenSSH's known_hosts, such as an @cert-authority.
	KnownHosts string `cbor:"2,keyasint,omitempty"`
	// Alone says that every TLS connection of the guest's ends on the host: a program needs
	// no other certificate, and starts faster when it reads no other.
	Alone bool `cbor:"4,keyasint,omitempty"`
}

// Hold asks that all processes of commands stand still until OpThaw; OpHold. It is refused
// while one of them uses a mount, unless KeepMounts says that the machine keeps its host.
type Hold struct {
	KeepMounts bool `cbor:"1,keyasint,omitempty"`
	Sync       bool `cbor:"2,keyasint,omitempty"` // write what waits for the disk
}

// Thawed answers OpThaw. Flows are the connections that the processes believe to have: in a
// copy of a machine they lead nowhere.
type Thawed struct {
	Flows []Flow `cbor:"1,keyasint,omitempty"` // MaxFlows at most
}

// Flow is a TCP connection of the guest, each end as address and port.
type Flow struct {
	Local  string `cbor:"1,keyasint"`
	Remote string `cbor:"2,keyasint"`
}

// MaxFlows bounds Thawed.Flows.
const MaxFlows = 4096

// PartSFTP is an SFTP server on standard input and output.
const PartSFTP = "sftp"

// Serve asks that a part of the guest that runs on demand serve its port; OpServe. It may
// be repeated. A second reply follows when the part has ended: a port that its guest has closed
// shows no end of file to the host.
type Serve struct {
	Port string `cbor:"1,keyasint"` // PortIngress
}

// Served answers Serve.
type Served struct {
	Before bool `cbor:"1,keyasint,omitempty"` // it did so already, and may not know that an earlier host has gone
}

// Dial asks for a connection to a TCP port of the guest's loopback; OpDial. After the reply the
// stream is the connection.
type Dial struct {
	Port uint16 `cbor:"1,keyasint"`
}
