import MediaPipeTasksVision
import UIKit

/// An exported file in MediaPipe Tasks, which reads labels and value ranges from the file itself.
///
/// An actor: `try await classifier.classify(photo)` runs off the main thread, one photo at a time.
actor MediaPipeClassifier {
    struct Prediction {
        let label: String
        let index: Int
        let probability: Float
    }

    private let input: ModelInput
    private let classifier: ImageClassifier

    init(maxResults: Int = 5) throws {
        input = try ModelInput.load()
        let options = ImageClassifierOptions()
        options.baseOptions.modelAssetPath = try resource("mobilevit", "tflite").path
        options.runningMode = .image
        options.maxResults = maxResults
        classifier = try ImageClassifier(options: options)
    }

    /// The best classes of a photo, the best first.
    func classify(_ photo: UIImage) throws -> [Prediction] {
        // MediaPipe stretches what it gets to the input's size, whatever its shape, and `MPImage(uiImage:)` ignores how
        // the photo was held. Upright and at that size already, it stays as it is.
        let image = try MPImage(uiImage: input.prepare(photo))
        let result = try classifier.classify(image: image)
        let categories = result.classificationResult.classifications.first?.categories ?? []
        return categories.map {
            Prediction(label: $0.categoryName ?? "class \($0.index)", index: $0.index, probability: $0.score)
        }
    }
}
