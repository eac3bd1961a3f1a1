// The camera: on, off, the other one.
import { PageError } from "./attached.js";

const PROBLEMS = {
  NotAllowedError: "The camera was not allowed. Allow it in the browser's settings for this page, or choose a photo.",
  NotFoundError: "There is no camera on this device. Choose a photo instead.",
  NotReadableError: "The camera is used by another program. Close that, or choose a photo.",
};

/** Shows the camera in a video element. */
export class Camera {
  #video;
  #stream = null;
  #facing = "environment"; // the one on the back, where there are two

  constructor(video) {
    this.#video = video;
  }

  get isOn() {
    return this.#stream !== null;
  }

  async start() {
    if (!navigator.mediaDevices) {
      throw new PageError("Browsers give the camera only to pages at https:// or on localhost. Choose a photo instead.");
    }
    this.stop();
    try {
      const wish = { facingMode: { ideal: this.#facing }, width: { ideal: 1280 }, height: { ideal: 720 } };
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: wish, audio: false });
      this.#video.srcObject = this.#stream;
      await this.#video.play();
    } catch (error) {
      this.stop();
      throw new PageError(PROBLEMS[error.name] ?? `The camera does not start (${error.message || error.name}). Choose a photo instead.`);
    }
    const [track] = this.#stream.getVideoTracks();
    this.#video.classList.toggle("mirrored", (track.getSettings().facingMode ?? this.#facing) === "user");
  }

  async switch() {
    this.#facing = this.#facing === "user" ? "environment" : "user";
    await this.start();
  }

  stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /** What it shows now; null: nothing yet. */
  async frame() {
    return this.#video.videoWidth ? createImageBitmap(this.#video) : null;
  }
}
