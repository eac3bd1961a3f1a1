// The camera: on, off, the other one.
import { PageError } from "./attached.js";

const PROBLEMS = {
  NotAllowedError: "The camera was not allowed. Allow it in the browser's settings for this page, or choose a photo.",
  NotFoundError: "There is no camera on this device. Choose a photo instead.",
  NotReadableError: "The camera is used by another program. Close that, or choose a photo.",
};

function end(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** Shows the camera in a video element. */
export class Camera {
  #video;
  #stream = null;
  #turn = 0; // counts stops
  #facing = "environment"; // the one on the back, where there are two

  constructor(video) {
    this.#video = video;
  }

  get isOn() {
    return this.#stream !== null;
  }

  async start() {
    if (!navigator.mediaDevices) {
      throw new PageError("Browsers give the camera only to https:// pages and to localhost. Choose a photo instead.");
    }
    this.stop();
    const turn = this.#turn;
    try {
      const wish = { facingMode: { ideal: this.#facing }, width: { ideal: 1280 }, height: { ideal: 720 } };
      const stream = await navigator.mediaDevices.getUserMedia({ video: wish, audio: false });
      if (turn !== this.#turn) {
        end(stream); // stopped while the visitor was asked
        return;
      }
      this.#stream = stream;
      this.#video.srcObject = stream;
      const facing = stream.getVideoTracks()[0].getSettings().facingMode ?? this.#facing;
      this.#video.classList.toggle("mirrored", facing === "user");
      await this.#video.play();
    } catch (error) {
      if (turn !== this.#turn) return;
      this.stop();
      const unknown = `The camera does not start (${error.message || error.name}). Choose a photo instead.`;
      throw new PageError(PROBLEMS[error.name] ?? unknown);
    }
  }

  async switch() {
    this.#facing = this.#facing === "user" ? "environment" : "user";
    await this.start();
  }

  stop() {
    this.#turn++;
    if (this.#stream) end(this.#stream);
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /** What it shows now; null: nothing yet. */
  async frame() {
    return this.#video.videoWidth ? createImageBitmap(this.#video) : null;
  }

  /** The same as a file. */
  async photo() {
    const frame = await this.frame();
    if (!frame) return null;
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: frame.width, height: frame.height });
    canvas.getContext("2d").drawImage(frame, 0, 0);
    frame.close();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    return new File([blob], "from the camera");
  }
}
