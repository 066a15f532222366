"""Attributes that are kept as they come, because what they may hold identifies nobody: no marks go there.

A mark in any other place must not survive. Whoever lets another attribute stay has to name it here, with a
reason.
"""

from __future__ import annotations

from typing import Final

_PLACES: Final = {
    "Table E.1-1 keeps them under Retain Patient Characteristics; they describe, and name nobody": """
        EthnicGroup MeasuredAPDimension MeasuredLateralDimension PatientBodyMassIndex PatientSex
        PatientSexNeutered PatientSize PatientWeight PregnancyStatus SmokingStatus
    """,
    "code strings: PS3.3 gives enumerated values or defined terms": """
        AcquisitionContrast AcquisitionTimeSynchronized AnatomicalOrientationType AngioFlag
        AnodeTargetMaterial ApplicableSafetyStandardAgency ArterialSpinLabelingContrast BeatRejectionFlag
        BrachyTreatmentTechnique BrachyTreatmentType BulkMotionCompensationTechnique
        BulkMotionSignalSource CalibrationImage CardiacBeatRejectionTechnique CardiacSignalSource
        CardiacSynchronizationTechnique CollimatorShape ColorSpace ComplexImageComponent
        ContentQualification ContrastBolusIngredient CoverageOfKSpace DetectorActiveShape
        DetectorConditionsNominalFlag DetectorPositioningType DimensionOrganizationType
        EchoPlanarPulseSequence EchoPulseSequence EntranceDoseDerivation ExposureModulationType
        ExposureStatus FieldOfViewHorizontalFlip FilterMaterial FunctionalSettlingPhaseFramesPresent
        GeometryOfKSpaceTraversal GraphicType Grid ImageLaterality ImageType InPlanePhaseEncodingDirection
        KSpaceFiltering Laterality LongitudinalTemporalEventType LossyImageCompression
        LossyImageCompressionMethod MultiPlanarExcitation MultienergyCTAcquisition MultipleSpinEcho
        OrganExposed OversamplingPhase PatientOrientation PatientPosition PhaseContrast
        PixelOriginInterpretation PixelPresentation PixelSpacingCalibrationType PlanIntent PreliminaryFlag
        PresentationLUTShape QualityControlImage QualityControlSubject QueryRetrieveView RectificationType
        RectilinearPhaseEncodeReordering ResonantNucleus RespiratoryMotionCompensationTechnique
        RespiratorySignalSource RespiratoryTriggerType ResponsiblePersonRole RotationDirection
        SOPInstanceStatus SaturationRecovery ScanArcType ScanOptions SegmentationFractionalType
        SegmentedKSpaceTraversal SegmentsOverlap ShutterShape SliceProgressionDirection
        SpatialTransformOfDose SpectrallySelectedSuppression SteadyStatePulseSequence StereoPairsPresent
        SynchronizationTrigger SyntheticData TableType TemporalRangeType TimeDistributionProtocol
        TimeOfFlightContrast TissueHeterogeneityCorrection TomoClass TomoType TypeOfPatientID
        VOILUTFunction VariableFlipAngleFlag ViewPosition VolumeBasedCalculationTechnique
        VolumetricProperties
    """,
    "numbers: what is measured, set or counted": """
        AcquisitionDuration AcquisitionMatrix AcquisitionNumber B1rms
        BluePaletteColorLookupTableDescriptor BodyPartThickness CTDIvol CalciumScoringMassFactorDevice
        CalciumScoringMassFactorPatient CardiacNumberOfImages CardiacRRIntervalSpecified
        CenterOfCircularCollimator CenterOfCircularShutter CollimatorLeftVerticalEdge
        CollimatorLowerHorizontalEdge CollimatorRightVerticalEdge CollimatorUpperHorizontalEdge
        ColumnAngulation CompressionContactArea CompressionForce CompressionPressure
        ConcatenationFrameOffsetNumber ContrastBolusIngredientConcentration ContrastBolusTotalDose
        ContrastBolusVolume ContrastFlowDuration ContrastFlowRate DVHNormalizationDoseValue
        DVHNormalizationPoint DataCollectionCenterPatient DataCollectionDiameter
        DetectorActivationOffsetFromExposure DetectorActiveDimensions DetectorActiveOrigin
        DetectorActiveTime DetectorBinning DetectorElementPhysicalSize DetectorElementSpacing
        DetectorPrimaryAngle DetectorSecondaryAngle DetectorTemperature DetectorTimeSinceLastExposure
        DeviationIndex DistanceBetweenFocalPlanes DistanceSourceToDetector DistanceSourceToEntrance
        DistanceSourceToPatient DoubleFloatPixelPaddingRangeLimit DoubleFloatPixelPaddingValue EchoNumbers
        EchoTrainLength EnergyWeightingFactor EntranceDose EntranceDoseInmGy EstimatedDoseSaving
        EstimatedRadiographicMagnificationFactor ExposedArea Exposure ExposureIndex ExposureInuAs
        ExposureTime ExposureTimeInuS ExposuresOnDetectorSinceLastCalibration
        ExposuresOnDetectorSinceManufactured ExposuresOnPlate FieldOfViewOrigin FieldOfViewRotation
        FilterBeamPathLengthMaximum FilterBeamPathLengthMinimum FilterThicknessMaximum
        FilterThicknessMinimum FlipAngle FloatPixelPaddingRangeLimit FloatPixelPaddingValue FocalSpots
        FrameOfReferenceToDisplayedCoordinateSystemTransformationMatrix GantryDetectorTilt GeneratorPower
        GraphicData GreenPaletteColorLookupTableDescriptor GridAspectRatio GridFocalDistance GridPeriod
        GridPitch GridThickness HalfValueLayer HeartRate HighRRValue ImageAndFluoroscopyAreaDoseProduct
        ImageOrientationSlide ImagerPixelSpacing ImagesInAcquisition ImagingFrequency
        InConcatenationNumber InConcatenationTotalNumber InstanceNumber IntervalsAcquired
        IntervalsRejected InversionTime IsocenterPosition KVP LargestImagePixelValue
        LargestPixelValueInSeries LongitudinalTemporalOffsetFromEvent LossyImageCompressionRatio
        LowRRValue MagneticFieldStrength MaximumFractionalValue NominalInterval NormalizationPoint
        NumberOfAverages NumberOfFocalPlanes NumberOfKSpaceTrajectories NumberOfPhaseEncodingSteps
        NumberOfTemporalPositions NumberOfTomosynthesisSourceImages OrganDose PatientSupportAngle
        PercentPhaseFieldOfView PercentSampling PhototimerSetting PixelAspectRatio PixelBandwidth
        PixelPaddingRangeLimit PixelPaddingValue PixelSpacing PlanarConfiguration PositionerPrimaryAngle
        PositionerSecondaryAngle RadiusOfCircularCollimator RadiusOfCircularShutter
        RecommendedAbsentPixelCIELabValue ReconstructionDiameter ReconstructionTargetCenterPatient
        RedPaletteColorLookupTableDescriptor ReferencedSamplePositions ReferencedTimeOffsets
        RelativeXRayExposure RepresentativeFrameNumber RescaleIntercept RescaleSlope
        RespiratoryTriggerDelayThreshold RevolutionTime SAR ShutterLeftVerticalEdge
        ShutterLowerHorizontalEdge ShutterPresentationColorCIELabValue ShutterPresentationValue
        ShutterRightVerticalEdge ShutterUpperHorizontalEdge SingleCollimationWidth SkipBeats SliceLocation
        SliceThickness SmallestImagePixelValue SmallestPixelValueInSeries SpacingBetweenSlices
        SpatialResolution SpiralPitchFactor SynchronizationChannel TableAngle TableFeedPerRotation
        TableHeight TableSpeed TableTopLateralPosition TableTopLongitudinalPosition TableTopPitchAngle
        TableTopRollAngle TargetExposureIndex TemporalPositionIdentifier TemporalResolution TomoAngle
        TomoLayerHeight TomoTime TotalCollimationWidth TotalPixelMatrixColumns TotalPixelMatrixFocalPlanes
        TotalPixelMatrixRows TriggerTime TriggerWindow VerticesOfThePolygonalCollimator
        VerticesOfThePolygonalShutter WaterEquivalentDiameter WaveformDataDisplayScale
        WaveformDisplayBackgroundCIELabValue WindowCenter WindowWidth XRayOutput XRayTubeCurrent
        XRayTubeCurrentInuA dBdt
    """,
    "what a maker or the software writes: makes, models, versions, coils, kernels, filters, kinds": """
        AcquisitionDeviceProcessingCode CardiacFramingType CollimatorGridName ContrastBolusRoute
        ConvolutionKernel DetectorManufacturerModelName DetectorManufacturerName FilterType ImagedNucleus
        Manufacturer ManufacturerModelName PhosphorType PlateType PositionReferenceIndicator
        PulseSequenceName ReceiveCoilName RescaleType SequenceName SoftwareVersions TransmitCoilName
        TriggerSourceOrType
    """,
    "short descriptions that equipment writes, and that Table E.1-1 has no row for": """
        ApplicableSafetyStandardDescription StrainNomenclature
    """,
    "samples of lookup tables, by which colours are shown": """
        BluePaletteColorLookupTableData GreenPaletteColorLookupTableData
        RedPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
        SegmentedGreenPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    """,
}
KEPT: Final = {keyword: reason for reason, keywords in _PLACES.items() for keyword in keywords.split()}
"""Why a mark may stay, by keyword."""

STEERING: Final = frozenset({
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "PhotometricInterpretation", "BurnedInAnnotation", "RecognizableVisualFeatures", "SpecimenLabelInImage",
    "ConversionType", "SourcePatientGroupIdentificationSequence", "GroupOfPatientsIdentificationSequence",
    "NumberOfFrames", "SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "ImageType",
})  # fmt: skip
"""Attributes by whose value an instance is judged or read: another one stops it, as other tests show."""
