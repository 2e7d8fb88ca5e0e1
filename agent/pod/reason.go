package pod

// Reason is a CamelCase word for a person (and for kubectl): container waiting
// and terminated reasons, condition reasons and event reasons, spelled as
// Kubernetes spells them.
type Reason string

// Waiting and terminated reasons of containers.
const (
	ContainerCreating          Reason = "ContainerCreating"
	PodInitializing            Reason = "PodInitializing"
	CrashLoopBackOff           Reason = "CrashLoopBackOff"
	ErrImagePull               Reason = "ErrImagePull"
	ImagePullBackOff           Reason = "ImagePullBackOff"
	ErrImageNeverPull          Reason = "ErrImageNeverPull"
	InvalidImageName           Reason = "InvalidImageName"
	ImageInspectError          Reason = "ImageInspectError"
	RegistryUnavailable        Reason = "RegistryUnavailable"
	CreateContainerConfigError Reason = "CreateContainerConfigError"
	CreateContainerError       Reason = "CreateContainerError"
	RunContainerError          Reason = "RunContainerError"
	PostStartHookError         Reason = "PostStartHookError"
	Completed                  Reason = "Completed"
	ReasonError                Reason = "Error"
	OOMKilled                  Reason = "OOMKilled"
	ContainerStatusUnknown     Reason = "ContainerStatusUnknown"
	SignatureValidationFailed  Reason = "SignatureValidationFailed"
	RestartingAllContainers    Reason = "RestartingAllContainers"
)

// Condition reasons.
const (
	ContainersNotInitialized Reason = "ContainersNotInitialized"
	ContainersNotReady       Reason = "ContainersNotReady"
	ReadinessGatesNotReady   Reason = "ReadinessGatesNotReady"
	PodCompleted             Reason = "PodCompleted"
	PodFailed                Reason = "PodFailed"
	UnknownContainerStatuses Reason = "UnknownContainerStatuses"
	// RestartAllContainersStarted is why AllContainersRestarting is true.
	RestartAllContainersStarted Reason = "RestartAllContainersStarted"
)

// Event reasons, and pod-level status reasons.
const (
	Scheduled     Reason = "Scheduled"
	Pulling       Reason = "Pulling"
	Pulled        Reason = "Pulled"
	FailedReason  Reason = "Failed" // pulling, creating or starting a container failed
	BackOff       Reason = "BackOff"
	CreatedReason Reason = "Created"
	Started       Reason = "Started"
	Killing       Reason = "Killing"
	Unhealthy     Reason = "Unhealthy"
	FailedMount   Reason = "FailedMount"
	FailedKillPod Reason = "FailedKillPod"
	// FailedCreatePodContainer tells of the pod's cgroup, whatever its name says.
	FailedCreatePodContainer Reason = "FailedCreatePodContainer"
	ExceededGracePeriod      Reason = "ExceededGracePeriod"
	FailedPodSandBoxStatus   Reason = "FailedPodSandBoxStatus"
	FailedCreatePodSandBox   Reason = "FailedCreatePodSandBox"
	SandboxChanged           Reason = "SandboxChanged"
	FailedPostStartHook      Reason = "FailedPostStartHook"
	FailedPreStopHook        Reason = "FailedPreStopHook"
	FailedValidation         Reason = "FailedValidation"
	NetworkNotReady          Reason = "NetworkNotReady"
	DeadlineExceeded         Reason = "DeadlineExceeded"
	Evicted                  Reason = "Evicted"
	OutOfPods                Reason = "OutOfpods"
	NodePorts                Reason = "NodePorts"
	UnexpectedAdmission      Reason = "UnexpectedAdmissionError"
)
